"""The layouts by name."""

from ec_dit.layouts.base import Layout
from ec_dit.layouts.dsg import Dpg, Dsg
from ec_dit.layouts.flat import Flat
from ec_dit.layouts.geneval import Geneval
from ec_dit.layouts.hpsv2 import Hpsv2
from ec_dit.layouts.t2i_compbench import T2iCompbench

LAYOUTS: dict[str, Layout] = {
    "dpg": Dpg(),
    "dsg": Dsg(),
    "flat": Flat(),
    "geneval": Geneval(),
    "hpsv2": Hpsv2(),
    "t2i_compbench": T2iCompbench(),
}
