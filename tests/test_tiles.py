from kinfolk.tiles import GAP, corners, grid


def test_a_grid_is_as_square_as_can_be_and_its_tiles_keep_apart():
    for count in range(1, 30):
        rows, columns = grid(count)
        assert rows * columns >= count > (rows - 1) * columns
        assert 0 <= columns - rows <= 1
        places = corners(count, 3, 5)
        assert places[0] == (0, 0)
        assert len(set(places)) == count
        assert {top % (3 + GAP) for top, _ in places} == {left % (5 + GAP) for _, left in places} == {0}
        assert max(left for _, left in places) <= (columns - 1) * (5 + GAP)
    assert grid(8, columns=8) == (1, 8)
