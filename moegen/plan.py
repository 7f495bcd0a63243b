"""Public names for planning a program for devices that are not here: slices, links, compilers."""

from moegen.tune.hlo import collectives, totals
from moegen.tune.network import Box, Collective, Network, joined, seconds
from moegen.tune.target import Target
from moegen.tune.topology import Topology, arranged, boxes, topology
from moegen.tune.tpu_compiler import FIX, MISSING, environment, libtpu_folder

__all__ = [
    "FIX",
    "MISSING",
    "Box",
    "Collective",
    "Network",
    "Target",
    "Topology",
    "arranged",
    "boxes",
    "collectives",
    "environment",
    "joined",
    "libtpu_folder",
    "seconds",
    "topology",
    "totals",
]
