"""Check that no files import each other in a circle. Exits with 1 if some do."""

import sys
from graphlib import CycleError, TopologicalSorter

import grimp

graph = grimp.build_graph("jobs", "scheduler", "worker")
try:
    TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}).prepare()
except CycleError as error:
    sys.exit("import cycle: " + " <- ".join(error.args[1]))
print(f"{len(graph.modules)} modules, no import cycle")
