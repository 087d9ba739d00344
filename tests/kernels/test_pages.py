"""Boxes of pages, and rows of pages, against lists of rows.

Shape legend: B batch, N sets of pages, S rows in the cache, P pages, J pages wanted at most.
"""

import pytest
import torch

from lacuna.kernels.grow_box import OP as GROW_BOX
from lacuna.kernels.page_rows import OP as PAGE_ROWS
from lacuna.kernels.verify import poisoned_memory

both = pytest.mark.parametrize("twin", ["eager", "fused"])


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "page", "dim"), [(23, 4, 16), (9, 1, 40), (20, 32, 64)])
def test_a_box_that_grew_is_drawn_around_its_page(rows, page, dim, dtype, twin, device):
    """Broken: a box keeps what its memory held before, misses a row or side, or holds rows of another text's pages."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(2, 3, rows, dim, generator=generator).to(device, dtype)
    first_B = torch.tensor([0, 6], device=device)
    boxes = torch.full((2, 3, -(-rows // page), 2 * dim), 7.0, device=device, dtype=dtype)
    for row in range(6, rows):
        row_B = torch.tensor([row], device=device).expand(2) - torch.tensor([6, 0], device=device)
        assert getattr(GROW_BOX, twin)(keys, row_B, first_B, boxes, page) is boxes
    for text, first in enumerate((0, 6)):
        for number in range(boxes.shape[2]):
            begin, end = first + number * page, min(first + (number + 1) * page, first + rows - 6)
            want = torch.full_like(boxes[text, :, number], 7.0)
            if begin < end:
                mine = keys[text, :, begin:end]
                want = torch.cat([mine.amax(1), mine.amin(1)], -1)
            assert torch.equal(boxes[text, :, number], want)


@both
def test_all_texts_may_write_the_same_row(twin, device):
    """Broken: an expanded place, as a clock gives it, is read beyond its end."""
    inputs = GROW_BOX.make(GROW_BOX.cases[0], device, 0)
    want = inputs["boxes_BGPW"].clone()
    row_B = torch.tensor([40], device=device)
    for text in range(2):
        alone = (inputs["keys_BGSD"][text : text + 1], row_B, inputs["first_B"][text : text + 1])
        GROW_BOX.eager(*alone, want[text : text + 1], inputs["page"])
    rest = (inputs["first_B"], inputs["boxes_BGPW"], inputs["page"])
    got = getattr(GROW_BOX, twin)(inputs["keys_BGSD"], row_B.expand(2), *rest)
    assert torch.equal(got, want)


@both
def test_a_box_tells_a_key_that_is_no_number(twin, device):
    """Broken: a NaN key is left out of its box, and its page is ranked as if nothing were wrong."""
    inputs = GROW_BOX.make(GROW_BOX.cases[0], device, 0)
    text, row = 1, int(inputs["row_B"][1])
    inputs["keys_BGSD"][text, 0, row, 3] = float("nan")
    page = (row - int(inputs["first_B"][text])) // inputs["page"]
    boxes = getattr(GROW_BOX, twin)(**inputs)
    dim = inputs["keys_BGSD"].shape[3]
    assert boxes[text, 0, page].isnan().nonzero().flatten().tolist() == [3, dim + 3]
    assert int(boxes.isnan().sum()) == 2


def rows_of(pages, context, first, page):
    """Rows of some pages and of the last, ascending."""
    places = [place for number in pages for place in range(number * page, (number + 1) * page)]
    own = (context - 1) // page * page if context else 0
    return [first + place for place in (*places, *range(own, context))]


@both
@pytest.mark.parametrize("page", [1, 3, 16, 600])
def test_rows_are_those_of_the_pages_and_of_the_last(page, twin, device):
    """Broken: a page is named wrongly, padding or unwritten rows are attended, or rows stand behind the count."""
    context, first = [5 * page, 5 * page - page // 2, 1, 0], [0, 7, 3, 9]
    chosen = [[[0, 2, 3], []], [[1], [0, 1, 2]], [[], []], [[], []]]
    index_BNJ = torch.tensor([[one + [-1] * (3 - len(one)) for one in sets] for sets in chosen], dtype=torch.int32)
    count_BN = torch.tensor([[len(one) for one in sets] for sets in chosen], dtype=torch.int32)
    inputs = (index_BNJ, count_BN, torch.tensor(context), torch.tensor(first))
    with poisoned_memory():
        rows_BNK, rows_BN = getattr(PAGE_ROWS, twin)(*(part.to(device) for part in inputs), page)
    assert rows_BNK.dtype == rows_BN.dtype == torch.int32
    assert rows_BNK.shape == (4, 2, 4 * page)
    for text, sets in enumerate(chosen):
        for number, one in enumerate(sets):
            want = rows_of(one, context[text], first[text], page)
            assert int(rows_BN[text, number]) == len(want)
            assert rows_BNK[text, number].tolist() == want + [-1] * (4 * page - len(want))


@both
def test_without_room_for_a_page_the_last_is_left(twin, device):
    """Broken: an index that can name no page has no columns for the rows that are always attended."""
    nothing = torch.empty(2, 1, 0, dtype=torch.int32, device=device)
    given = (torch.tensor(part, device=device) for part in ([6, 3], [0, 2]))
    rows, count = getattr(PAGE_ROWS, twin)(nothing, torch.zeros(2, 1, dtype=torch.int32, device=device), *given, 4)
    assert rows.tolist() == [[[4, 5, -1, -1]], [[2, 3, 4, -1]]]
    assert count.tolist() == [[2], [3]]
