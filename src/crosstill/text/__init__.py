"""From text to tokens and their exact bytes; knows neither torch nor models."""
