"""What a compiled kernel touches ahead of its wait for the kernels before, by its PTX."""

import re

LOAD = re.compile(r"\bld\.(?!param|shared|local|const)\S*\s.*\[\s*(%\w+)|\bcp\.async\.c[ag]\S*\s.*\[\s*(%\w+)[^\[]*$")
STORE = re.compile(
    r"\b(?:st|red|atom)\.(?!shared|local|param)[^\[]*\[\s*(%\w+)|\bcp\.async\.bulk\.(?!prefetch)[^\[]*\[\s*(%\w+)"
)


def touched_early(ptx, parameters):
    """The parameters from which memory is loaded, and to which it is stored, ahead of the wait for the kernels before.

    All that a kernel touches, where none waits.
    """
    lines = ptx.splitlines()
    wait = next((place for place, line in enumerate(lines) if "griddepcontrol.wait" in line), len(lines))
    of, touched = {}, (set(), set())
    for line in 2 * lines[:wait]:  # twice, as a loop may hand on what stands further down
        told = re.search(r"ld\.param\S+\s+(%\w+), \[\w+_param_(\d+)\]", line)
        if told:
            of[told[1]] = {int(told[2])}
            continue
        found = LOAD.search(line), STORE.search(line)
        for kind, match in zip(touched, found, strict=True):
            if match:
                kind.update(of.get(match[1] or match[2], ()))
        registers = re.findall(r"%\w+", line.partition("%p")[2] if line.strip().startswith("@") else line)
        if registers and not any(found):
            of[registers[0]] = set().union(*(of.get(one, set()) for one in registers))
    names = [[name for i, name in enumerate(parameters) if i in kind and name.endswith("_ptr")] for kind in touched]
    return dict(zip(("read_early", "written_early"), names, strict=True))
