"""How numbers are written for people, the same in the terminal and on the page."""


def number(value: float) -> str:
    """About four digits, thousands separated; whole numbers without decimals."""
    size = abs(value)
    if float(value).is_integer() or size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def signed(value: float) -> str:
    """`number` for the page."""
    return minus(number(value))


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def size(count: int) -> str:
    """Bytes in binary units."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min(max(count.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{count / 1024**power:.4g} {units[power]}"


def words(name: str) -> str:
    """A key of the summary as a label."""
    return name.replace("_", " ").replace("logp", "log p")


def minus(text: str) -> str:
    """With the sign that lines up with digits, for the page; terminals and people who copy get the hyphen."""
    return text.replace("-", "−")
