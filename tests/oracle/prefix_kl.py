"""Prefix KL by brute force: every sum runs over the whole vocabulary, in float64, by loops."""

import math

import numpy as np


def softmax(row):
    row = np.asarray(row, float)
    exp = np.exp(row - row.max())
    return exp / exp.sum()


def divergence(wanted, found):
    """KL of two lists of masses; the lists need not sum to one."""
    return sum(
        p * (math.log(p) - math.log(max(q, 1e-37)))
        for p, q in zip(wanted, found, strict=True)
        if p > 0
    )


def begins(whole, prefix):
    return whole[: len(prefix)] == prefix


class PrefixKl:
    """Spellings are lists of tuples, one for each id; () where a token cannot be spelled."""

    def __init__(
        self, teacher_spelled, student_spelled, student_tokens, teacher_tokens, *,
        unwritten=(), before_word=None, top_k=None, tau=1.0,
    ):  # fmt: skip
        self.top_k, self.tau = top_k, tau
        self.student_tokens, self.teacher_tokens = student_tokens, teacher_tokens
        student_bytes, teacher_bytes = map(len, student_tokens), map(len, teacher_tokens)
        self.seg, self.back = teacher_spelled, student_spelled
        self.student_bytes, self.teacher_bytes = list(student_bytes), list(teacher_bytes)
        starts = {s[0] for s in self.seg if s}
        self.kind = []
        for u, spelled in enumerate(student_spelled):
            if u in unwritten:
                self.kind.append(None)
            elif u in starts:
                self.kind.append(u)
            elif spelled and self.seg[spelled[0]]:
                self.kind.append(self.seg[spelled[0]][0])
            else:
                self.kind.append(None)
        for u, spelled in (before_word or {}).items():
            self.kind[u] = self.seg[spelled[0]][0]
            self.back = [*self.back[:u], tuple(spelled), *self.back[u + 1 :]]
        for _ in self.kind:  # as often as it takes
            self.kind = [k if k is None else self.kind[k] for k in self.kind]
        self.pooled = [k is not None and k != u for u, k in enumerate(self.kind)]

    def teach(self, row):
        """The teacher's known masses, and what counts as the whole of what can be spelled."""
        p = softmax(np.asarray(row, float) / self.tau)
        if self.top_k is None:
            return p, sum(p[v] for v, spelled in enumerate(self.seg) if spelled)
        kept = np.argsort(-p)[: self.top_k]
        return np.where(np.isin(np.arange(len(p)), kept), p, 0.0), 1.0

    def mass(self, p, prefix, exact=False):
        return sum(
            p[v]
            for v, s in enumerate(self.seg)
            if s and (s == prefix if exact else begins(s, prefix))
        )

    def run(self, student, teacher, student_ids, teacher_ids, student_chunk, teacher_chunk):
        """(total, count) of one sequence; logits [Ts, Vs] and [Tt, Vt]."""
        chunks, total, count = self.chunks(student_chunk, teacher_chunk), 0.0, 0
        for n, (s, t) in enumerate(chunks):
            before = chunks[n - 1] if n else None
            part, rows = self.chunk(s, t, before, student, teacher, student_ids, teacher_ids)
            total, count = total + part, count + rows
        return total, count

    def chunks(self, student_chunk, teacher_chunk):
        found = []
        for k in range(max([*student_chunk, *teacher_chunk, -1]) + 1):
            s = [i for i, c in enumerate(student_chunk) if c == k]
            t = [i for i, c in enumerate(teacher_chunk) if c == k]
            if s and t and s[0] > 0 and t[0] > 0:
                found.append((s, t))
        return found

    def target(self, s, t, before, teacher, student_ids, teacher_ids):
        """Masses by class at a chunk's start, the share of its row in them, whether to split."""
        p, whole = self.teach(teacher[t[0] - 1])
        wanted = {}
        for v, spelled in enumerate(self.seg):
            if spelled:
                kind = self.kind[spelled[0]]
                wanted[kind] = wanted.get(kind, 0.0) + p[v] / whole
        share = 1.0
        if before and before[0][-1] == s[0] - 1 and before[1][-1] == t[0] - 1:
            prefix = tuple(student_ids[i] for i in before[0])
            longer = {spelled[: len(prefix) + 1] for spelled in self.seg
                      if begins(spelled, prefix) and len(spelled) > len(prefix)}  # fmt: skip
            if len(before[1]) == 1 and longer:
                old, _ = self.teach(teacher[before[1][0] - 1])
                last = teacher_ids[before[1][0]]
                other = old[last] if self.seg[last] != prefix else 0.0
                here = self.mass(old, prefix) + other
                share = (self.mass(old, prefix, exact=True) + other) / here if here else 1.0
                wanted = {u: share * value for u, value in wanted.items()}
                for path in longer if here else ():
                    kind = self.kind[path[-1]]
                    if kind is not None:
                        wanted[kind] = wanted.get(kind, 0.0) + self.mass(old, path) / here
        first = teacher_ids[t[0]]
        own = self.kind[self.seg[first][0]] if self.seg[first] else None
        came = self.kind[student_ids[s[0]]]
        if own != came:
            moved = min(share * p[first] / whole, wanted.get(own, 0.0))
            wanted[own] = wanted.get(own, 0.0) - moved
            wanted[came] = wanted.get(came, 0.0) + moved
        return wanted, share * p / whole, own == came

    def chunk(self, s, t, before, student, teacher, student_ids, teacher_ids):
        wanted, own, parts = self.target(s, t, before, teacher, student_ids, teacher_ids)
        q = softmax(student[s[0] - 1] / self.tau)
        told = [c for c, value in wanted.items() if value > 0]
        found = [sum(q[u] for u, kind in enumerate(self.kind) if kind == c) for c in told]
        untold = [c for c in set(self.kind) if c not in told]  # None as well
        found.append(sum(q[u] for u, kind in enumerate(self.kind) if kind in untold))
        missing = max(1.0 - sum(wanted.values()), 0.0)
        masses = [*(wanted[c] for c in told), missing if missing > 1e-6 else 0.0]
        total, rows = divergence(masses, found), 1
        p, _ = self.teach(teacher[t[0] - 1])
        first = teacher_ids[t[0]]
        for j in range(1, len(s)):
            prefix = tuple(student_ids[i] for i in s[:j])
            told = student[s[j] - 1] / self.tau
            rows += 1
            inside = sum(self.student_bytes[u] for u in prefix) < self.teacher_bytes[first]
            if not inside or not any(begins(spelled, prefix) for spelled in self.seg if spelled):
                total -= math.log(softmax(told)[student_ids[s[j]]])
                continue
            spelled = self.seg[first]
            told_next = spelled[j] if spelled[:j] == prefix else None
            here = self.mass(p, prefix) + (p[first] if told_next is None else 0.0)
            if here == 0:
                continue
            nexts = {x[j] for x in self.seg if len(x) > j and begins(x, prefix)}
            ps = {u: self.mass(p, (*prefix, u)) / here for u in nexts}
            if told_next is not None:
                ps[told_next] -= p[first] / here
            ps[student_ids[s[j]]] = ps.get(student_ids[s[j]], 0.0) + p[first] / here
            inside = softmax(told)
            qs = [inside[u] for u in ps]
            qs.append(sum(x for u, x in enumerate(inside) if u not in ps))
            total += divergence([*ps.values(), self.mass(p, prefix, exact=True) / here], qs)
        if parts:
            total += self.splits(t[0], teacher, teacher_ids, q, wanted, own, student_ids[s[0]])
        return total, rows

    def reach(self, p, path, branches, below):
        """The mass of the teacher tokens with which a text comes to each branch."""
        found = []
        for v in branches:
            if not any(self.back[u] == (*path, v) for u in below):
                found.append(p[v])
                continue
            longer = [w for w in branches if w != v and begins(self.seg[w], self.seg[v])]
            found.append(
                sum(
                    p[w]
                    for w, spelled in enumerate(self.seg)
                    if begins(spelled, self.seg[v])
                    and not any(begins(spelled, self.seg[x]) for x in longer)
                )
            )
        return found

    def behind(self, masses, p, path, branches, below, following, came):
        """The masses, with that of the text's next teacher token where the text shows it is."""
        sizes = {}
        for v in branches:
            if v == following:
                sizes[v] = 0
            elif self.seg[v] and self.seg[following] and begins(self.seg[following], self.seg[v]):
                sizes[v] = sum(begins(x, self.seg[v]) for x in self.seg if x)
        found = []
        for v, mass in zip(branches, masses, strict=True):
            ends = bool(self.seg[v]) and any(self.back[u] == (*path, v) for u in below)
            if v in sizes and sizes[v] == min(sizes.values()) and (ends or v == following):
                mass = max(mass - p[following], 0.0)
            if came in below and begins(self.back[came], (*path, v)):
                mass += p[following]
            found.append(mass)
        return found

    def splits(self, at, teacher, teacher_ids, q, wanted, own, came):
        """The terms that part the tokens which span several teacher tokens."""
        total, path, before, reached = 0.0, (), {}, {}
        for step in range(max(map(len, self.back)) - 1):
            if at + step >= len(teacher_ids):
                break
            path = (*path, teacher_ids[at + step])
            below = [u for u, x in enumerate(self.back) if self.pooled[u] and begins(x, path)]
            branches = sorted(
                {self.back[u][step + 1] for u in below if len(self.back[u]) > step + 1}
            )
            if step and not below:
                break
            if step and not branches:
                continue
            p, _ = self.teach(teacher[at + step])
            if step == 0:
                if not self.seg[path[0]]:
                    continue
                itself = self.seg[path[0]][0]
                kind = self.kind[itself]
                group = [u for u, c in enumerate(self.kind) if c == kind]
                share = min(own[path[0]] / wanted[kind], 1.0) if wanted[kind] else 0.0
                rest_exists, limit = True, 1.0 - share
            else:
                group, share = below, min(before[path] / max(reached[path], 1e-37), 1.0)
                rest_exists, limit = any(self.back[u] == path for u in below), 0.0
            masses = self.reach(p, path, branches, below)
            if at + step + 1 < len(teacher_ids) and (step == 0 or came in below):
                following = teacher_ids[at + step + 1]
                masses = self.behind(masses, p, path, branches, below, following, came)
            reached = {(*path, v): m for v, m in zip(branches, masses, strict=True)}
            before = {(*path, v): p[v] for v in branches}
            ps = [share * m for m in masses]
            qs = [sum(q[u] for u in below if begins(self.back[u], (*path, v))) for v in branches]
            whole = sum(q[u] for u in group)
            scale = 1.0
            if rest_exists:
                elsewhere = sum(q[u] for u in group if u not in below and u != itself)
                others = whole - sum(qs) - elsewhere
                rest = 1.0 - sum(ps)
                asked = min(limit, rest * elsewhere / (others + elsewhere))
                ps += [rest - asked, asked]
                qs += [others, elsewhere]
            else:
                scale = sum(ps)
                ps = [x / scale if scale else 0.0 for x in ps]
            total += scale * divergence(ps, [x / whole for x in qs])
        return total
