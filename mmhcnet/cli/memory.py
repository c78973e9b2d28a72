"""How much memory this process has needed."""
import re
import resource
from pathlib import Path


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes.

    ``getrusage`` alone would also count that of the process which started this one, if it was
    larger: Linux keeps the figure over exec. It serves where there is no VmHWM.
    """
    status = Path('/proc/self/status')
    found = status.exists() and re.search(r'VmHWM:\s+(\d+) kB', status.read_text())
    kib = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * 2**10
