"""How figures and tables are written, on screen and in Markdown."""


def significant(value, unit=1):
    """Three significant digits, never in exponent form: 0.0123, 1.23, 123, 1230. None is empty."""
    if not value:
        return "" if value is None else "0"
    value = value / unit
    limits = ((0, 99.95), (1, 9.995), (2, 0.9995), (3, 0.09995))
    return f"{value:.{next((decimals for decimals, limit in limits if value >= limit), 4)}f}"


def times(ratio):
    return "" if ratio is None else f"{significant(ratio)}x"


def percent(share):
    return "" if share is None else f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def error(value):
    return "" if value is None else f"{value:.1e}" if value else "0"


def pair(cells):
    """Figures of the two layouts in one cell; empty if none is known."""
    return " / ".join(cells) if any(cells) else ""


def markdown(head, rows):
    """The lines of a table."""
    lines = (head, ["---"] * len(head), *rows)
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |" for cells in lines]
