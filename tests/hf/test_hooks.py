"""Attributes that are replaced for a while come back exactly."""

import itertools

import pytest

from diffsteer.hf.hooks import replaced


class Owner:
    def step(self):
        return "class"


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_restored_in_any_order(own: bool, order) -> None:
    owner = Owner()
    if own:
        owner.step = lambda: "own"
    before = dict(vars(owner))
    hooks = [replaced(owner, "step", lambda i=i: i) for i in range(3)]
    for i, hook in enumerate(hooks):
        hook.__enter__()
        assert owner.step() == i
    for i in order:
        hooks[i].__exit__()
    assert vars(owner) == before and owner.step() == ("own" if own else "class")
