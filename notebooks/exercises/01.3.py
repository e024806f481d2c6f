"""Exercise 01.3, two products: its solution, cases, and known mistakes."""

import torch


def products(pictures, R, C):
    return R[:, None] @ pictures @ C[:, None].mT


def products_case(seed):
    make = torch.Generator().manual_seed(seed)
    square = [torch.rand(4, 6, 6, generator=make) for _ in range(2)]
    return torch.rand(4, 3, 6, 6, generator=make), *square


product_mistakes = {
    "C is not transposed: its columns belong to the stored pixels": (
        lambda x, R, C: R[:, None] @ x @ C[:, None]
    ),
    "R and C are exchanged: R makes rows and stands on the left": lambda x, R, C: products(x, C, R),
    "R is transposed: it is (S, H) already": lambda x, R, C: products(x, R.mT, C),
    "only the rows: multiply by C from the right as well": lambda x, R, C: R[:, None] @ x,
    "only the columns: multiply by R from the left as well": lambda x, R, C: x @ C[:, None].mT,
    "the first image's crop for all: each image has its own R and C": (lambda x, R, C: R[0] @ x @ C[0].T),
    "rows and columns of the view are exchanged": lambda x, R, C: products(x, R, C).mT,
}


EXERCISE = {
    "solution": products,
    "case": products_case,
    "mistakes": product_mistakes,
    "atol": 1e-4,
}
