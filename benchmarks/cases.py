"""All cases by name."""

from . import awkward, causal, decode, local_1d, local_2d, overhead, relative

CASES = {
    module.CASE.name: module.CASE
    for module in (causal, relative, local_2d, local_1d, decode, overhead, awkward)
}
