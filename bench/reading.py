"""What one pass of a case says: who was best, and how ours stand to them."""

from fastseg.bench.providers import LAYOUTS


def base_name(case):
    """The case's name without its pass."""
    return case["name"].removesuffix(f", {case['pass']}")


def timed(case, peer):
    return [entry for entry in case["providers"] if entry["status"] == "ok" and entry["peer"] is peer]


def fastest(entries):
    return min(entries, key=lambda entry: entry["median_ms"], default=None)


def least_memory(entries):
    """Bytes, or None."""
    return min((entry["peak_bytes"] for entry in entries if entry["peak_bytes"] is not None), default=None)


def our_names(case):
    """Our providers, in the order in which dispatch tries them."""
    return list(dict.fromkeys(entry["provider"] for entry in case["providers"] if not entry["peer"]))


def by_layout(case, name):
    """The entries of a provider, whatever their status, in the order of LAYOUTS."""
    entries = {entry["layout"]: entry for entry in case["providers"] if entry["provider"] == name}
    return [entries[layout] for layout in LAYOUTS if layout in entries]


def speedup(entry, peers):
    """Against the fastest of these peers; None where either has no time."""
    best = fastest(peers)
    if best is None or entry["status"] != "ok":
        return None
    return best["median_ms"] / entry["median_ms"]


def memory_ratio(entry, peers):
    """Peak memory over the least of these peers'; None where either is not known."""
    least = least_memory(peers)
    if not least or entry["status"] != "ok" or entry["peak_bytes"] is None:
        return None
    return entry["peak_bytes"] / least
