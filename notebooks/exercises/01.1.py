"""Exercise 01.1, overlap: its solution, cases, and known mistakes."""


def overlap_with(a, b, least=0, ends=None, over=None):
    ends = ends or (lambda box, i: box[i] + box[i + 2])
    height, width = (max(least, min(ends(a, i), ends(b, i)) - max(a[i], b[i])) for i in (0, 1))
    shared, areas = height * width, (a[2] * a[3], b[2] * b[3])
    return shared / (over(*areas, shared) if over else sum(areas) - shared)


def boxes_case(seed):
    boxes = [((0, 0, 10, 10), (5, 5, 10, 10)), ((0, 0, 4, 4), (8, 9, 5, 6)), ((2, 3, 20, 12), (4, 5, 6, 7))]
    boxes += [((0, 0, 10, 10), (0, 10, 10, 10)), ((3, 1, 9, 14), (6, 2, 11, 4)), ((3, 4, 10, 20),) * 2]
    return boxes[seed]


overlap_mistakes = {
    "boxes that are apart share a negative height times a negative width: never less than 0": (
        lambda a, b: overlap_with(a, b, least=-100)
    ),
    "divided by both areas: the shared one is counted twice": (
        lambda a, b: overlap_with(a, b, over=lambda x, y, shared: x + y)
    ),
    "divided by the first box only: then overlap(a, b) is not overlap(b, a)": (
        lambda a, b: overlap_with(a, b, over=lambda x, y, shared: x)
    ),
    "divided by the smaller box: a part of the whole would count as the whole": (
        lambda a, b: overlap_with(a, b, over=lambda x, y, shared: min(x, y))
    ),
    "the shared area in pixels: divide by the covered one": (
        lambda a, b: overlap_with(a, b, over=lambda x, y, shared: 1)
    ),
    "the last two numbers are height and width, not bottom and right": (
        lambda a, b: overlap_with(a, b, ends=lambda box, i: box[i + 2])
    ),
    "top and left are ignored: two equal boxes at two places are not one": (
        lambda a, b: overlap_with((0, 0, *a[2:]), (0, 0, *b[2:]))
    ),
}


EXERCISE = {
    "solution": overlap_with,
    "case": boxes_case,
    "mistakes": overlap_mistakes,
    "seeds": 6,
}
