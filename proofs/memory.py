"""A symbolic memory behind the model's interface: arrays of the solver's, from a granule's index to its tag and halves."""

from capvisor.model.memory import Granule
from capvisor.proofs.tables import ArrayRows, Column

INDEX_BITS = 64


class ArrayStore(ArrayRows):
    """Granules of a symbolic memory: all empty at first, or, where it has a name, any."""

    def __init__(self, address_width: int, name: str = "") -> None:
        columns = (Column("tags", 0), Column("upper", address_width), Column("lower", address_width))
        super().__init__(Granule, columns, INDEX_BITS, name)
