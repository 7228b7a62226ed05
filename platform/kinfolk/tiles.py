"""Where pictures stand in a grid. Who draws a grid and who cuts one up again agree here; there is no torch in it."""

import math

GAP = 2  # pixels between tiles


def grid(count: int, columns: int | None = None) -> tuple[int, int]:
    """Rows and columns of ``count`` tiles; as near to a square as can be, where the columns are left open."""
    columns = columns or math.ceil(math.sqrt(count))
    return math.ceil(count / columns), columns


def corners(count: int, height: int, width: int, columns: int | None = None) -> list[tuple[int, int]]:
    """The upper left pixel of each tile, as (row, column), of tiles of ``height`` x ``width`` pixels."""
    _, columns = grid(count, columns)
    return [(index // columns * (height + GAP), index % columns * (width + GAP)) for index in range(count)]
