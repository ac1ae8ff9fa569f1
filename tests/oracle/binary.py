"""Binary divergences with 60 digits, for arguments where float64 itself would be too coarse."""

from decimal import Decimal, localcontext

EPSILON = Decimal("1e-6")


def divergence(p, q, temperature, kind):
    """As `functional.binarised_divergence` of two numbers, correctly rounded to a float."""
    with localcontext() as context:
        context.prec = 60
        p, q = Decimal(p), Decimal(q)
        if temperature == float("inf"):
            return float(_limit(p - EPSILON, q - EPSILON, kind))
        scale = Decimal(temperature)
        u, v = p / scale - EPSILON, q / scale - EPSILON
        if kind == "reverse_kl":
            u, v = v, u
        if kind == "total_variation":
            return float(abs(u.exp() - v.exp()))
        yes, no_p, no_q = u.exp(), 1 - u.exp(), 1 - v.exp()
        return float(yes * (u - v) + no_p * (no_p.ln() - no_q.ln()))


def _limit(a, b, kind):
    if kind == "total_variation":
        return abs(a - b)
    if kind == "reverse_kl":
        a, b = b, a
    return (a - b) + a * (b / a).ln()
