"""The joint distribution is what its verbs say, in the table and in what is drawn (chi-square, fixed seeds)."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats

from nearfar.rng import Rng
from nearfar.worlds import Factors, Joint, Scenes, spread_pairs

FACTORS = Factors(num=(1, 4))
N = 6000


def drawn(joint: Joint, n: int = N, seed: int = 0) -> dict[str, torch.Tensor]:
    return joint.draw(torch.arange(n), Rng(seed))


def things(draw: dict[str, torch.Tensor], factor: str) -> torch.Tensor:
    values = draw[factor]
    if values.ndim == 1:
        values = values[:, None].expand_as(draw["present"])
    return values[draw["present"]]


def agree(counts: torch.Tensor, shares: torch.Tensor) -> None:
    """Counts are as likely as not under these shares; what has share 0 never occurs."""
    counts, shares = counts.flatten().double(), shares.flatten()
    assert (counts[shares == 0] == 0).all()
    there = shares > 0
    expected = shares[there] / shares.sum() * counts.sum()
    assert stats.chisquare(counts[there].numpy(), expected.numpy()).pvalue > 1e-3


def counts_of(draw: dict[str, torch.Tensor], *of: str, factors: Factors = FACTORS) -> torch.Tensor:
    sizes = [len(factors.names[name]) for name in of]
    key = torch.zeros_like(things(draw, of[0]))
    for name, size in zip(of, sizes, strict=True):
        key = key * size + things(draw, name)
    return torch.bincount(key, minlength=int(torch.tensor(sizes).prod())).view(sizes)


def test_uniform_but_for_the_colour_of_the_ground() -> None:
    factors = Factors(colours=("red", "white", "blue"))
    joint = Joint(factors)
    draw = drawn(joint)
    for of in itertools.combinations(("shape", "size", "texture"), 2):
        agree(counts_of(draw, *of, factors=factors), torch.ones(joint.marginal(*of).shape).double())
    both = counts_of(draw, "background", "colour", factors=factors)
    assert both[factors.id("background", "white"), factors.id("colour", "white")] == 0
    agree(both, joint.marginal("background", "colour"))
    num = draw["present"].sum(dim=1)
    agree(torch.bincount(num, minlength=5), torch.tensor([0, 1, 1, 1, 1.0]).double())


def test_slots_and_scenes_are_independent() -> None:
    draw = drawn(Joint(Factors(num=(2, 2))))
    shape = draw["shape"]
    table = torch.zeros(8, 8)
    table.index_put_((shape[:, 0], shape[:, 1]), torch.ones(N), accumulate=True)
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3
    follow = torch.zeros(8, 8)
    follow.index_put_((shape[:-1, 0], shape[1:, 0]), torch.ones(N - 1), accumulate=True)
    assert stats.chi2_contingency(follow.numpy()).pvalue > 1e-3


def test_weights_set_a_margin_and_keep_what_is_given_it() -> None:
    joint = Joint(FACTORS).correlate("colour", "shape", {"circle": "red"}, 0.7)
    weighed = joint.weigh("shape", {"circle": 5.0, "star": 0.0})
    margin = weighed.marginal("shape")
    expected = torch.tensor([5.0, 1, 1, 0, 1, 1, 1, 1]).double()
    assert torch.allclose(margin, expected / expected.sum())
    assert weighed.probability(shape="circle", colour="red") == pytest.approx(0.7 * 5 / 11)
    draw = drawn(weighed)
    agree(counts_of(draw, "shape"), margin)
    agree(counts_of(draw, "shape", "colour"), weighed.marginal("shape", "colour"))


def test_numbers_of_things_can_be_weighed() -> None:
    joint = Joint(FACTORS).weigh("num", {"1": 0.0, "4": 3.0})
    num = drawn(joint)["present"].sum(dim=1)
    agree(torch.bincount(num, minlength=5), torch.tensor([0, 0, 1, 1, 3.0]).double())


def test_a_long_tail_falls_geometrically() -> None:
    joint = Joint(FACTORS).long_tail("shape", 100)
    margin = joint.marginal("shape")
    assert margin[0] / margin[-1] == pytest.approx(100)
    assert torch.allclose(margin[1:] / margin[:-1], torch.full((7,), 100 ** (-1 / 7)).double(), atol=1e-6)
    draw = drawn(joint)
    agree(counts_of(draw, "shape"), margin)
    agree(counts_of(draw, "colour"), torch.ones(8).double())


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.95, 1.0])
def test_correlation_has_the_strength_that_is_told(strength: float) -> None:
    pairs = {"circle": "black", "square": "white"}
    joint = Joint(FACTORS).correlate("background", "shape", pairs, strength)
    for shape, ground in pairs.items():
        share = joint.probability(shape=shape, background=ground) / joint.probability(shape=shape)
        assert share == pytest.approx(strength)
    assert torch.allclose(joint.marginal("shape"), torch.full((8,), 1 / 8).double())
    # Things of one scene share their ground, so scenes of one thing give independent counts.
    one = Joint(Factors(num=(1, 1))).correlate("background", "shape", pairs, strength)
    agree(counts_of(drawn(one), "background", "shape"), one.marginal("background", "shape"))


def test_what_is_held_out_never_occurs_and_is_all_there_is_in_the_complement() -> None:
    pairs = spread_pairs(FACTORS, ("colour", "shape"), 12, seed=3)
    train = Joint(FACTORS).hold_out(("colour", "shape"), pairs)
    test = Joint(FACTORS).only(("colour", "shape"), pairs)
    seen = {}
    for name, joint in (("train", train), ("test", test)):
        batch = Scenes(FACTORS, joint).sample(400)
        seen[name] = {
            (FACTORS.colours[c], FACTORS.shapes[s])
            for c, s in zip(batch["colour"].values.tolist(), batch["shape"].values.tolist(), strict=True)
        }
        agree(counts_of(drawn(joint), "colour", "shape"), joint.marginal("colour", "shape"))
    assert seen["test"] == set(pairs)
    assert not seen["train"] & set(pairs)
    assert len(seen["train"]) == 64 - 12


def test_spread_pairs_take_equally_from_all_values() -> None:
    pairs = spread_pairs(FACTORS, ("colour", "shape"), 16)
    assert len(set(pairs)) == 16
    for at in (0, 1):
        values = [pair[at] for pair in pairs]
        assert {values.count(value) for value in set(values)} == {2}
    assert spread_pairs(FACTORS, ("colour", "shape"), 16, seed=1) != pairs
    few = Factors(sizes=("small", "large"))
    assert len(spread_pairs(few, ("size", "shape"), 8)) == 8
    with pytest.raises(ValueError, match="num: expected from 0 to 8, received 9"):
        spread_pairs(few, ("size", "shape"), 9)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_things_together_occur_with_the_share_that_is_told(share: float) -> None:
    joint = Joint(FACTORS).together({"shape": "ring"}, {"shape": "star", "colour": "red"}, share)
    draw = drawn(joint)
    ring = (draw["shape"] == FACTORS.id("shape", "ring")) & draw["present"]
    star = (draw["shape"] == FACTORS.id("shape", "star")) & (draw["colour"] == 0) & draw["present"]
    given = ring.any(dim=1) & ~(ring == draw["present"]).all(dim=1) | (ring.any(dim=1) & (ring.sum(dim=1) < 4))
    hits, total = int(star[given].any(dim=1).sum()), int(given.sum())
    assert total > 500
    assert stats.binomtest(hits, total, share).pvalue > 1e-3
    without = ~ring.any(dim=1)
    plain = drawn(Joint(FACTORS))
    assert torch.equal(draw["shape"][without], plain["shape"][without])


def test_distinct_things_share_no_name() -> None:
    joint = Joint(Factors(num=(4, 4), shapes=("circle", "square"), colours=("red", "blue"))).distinct("colour", "shape")
    draw = drawn(joint, 300)
    names = draw["colour"] * 2 + draw["shape"]
    assert (names.sort(dim=1).values == torch.arange(4)).all()
    mixed = Joint(FACTORS).distinct("shape").together({"shape": "ring"}, {"shape": "star"}, 0.9)
    draw = drawn(mixed, 1500)
    shapes = torch.where(draw["present"], draw["shape"], -1 - torch.arange(4))
    assert (shapes.sort(dim=1).values.diff(dim=1) != 0).all()


def test_places_are_a_factor() -> None:
    factors = Factors(places=("left", "right"))
    joint = Joint(factors).correlate("place", "colour", {"red": "left"}, 0.9)
    draw = drawn(joint)
    agree(counts_of(draw, "colour", "place", factors=factors), joint.marginal("colour", "place"))


def test_marginals_follow_the_order_of_their_names() -> None:
    joint = Joint(FACTORS).long_tail("shape", 10).hold_out(("shape", "colour"), [("circle", "red")])
    assert torch.equal(joint.marginal("colour", "shape"), joint.marginal("shape", "colour").T)
    assert joint.marginal().item() == pytest.approx(1)
    assert joint.probability(shape="circle", colour="red") == 0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda j: j.weigh("shap", [1]), "factor: expected one of .*did you mean 'shape'"),
        (lambda j: j.weigh("shape", {"disc": 1}), "weights of shape: expected one of"),
        (lambda j: j.weigh("size", [1, -1]), "weights of size: expected finite numbers from 0"),
        (lambda j: j.weigh("size", [1]), "weights of size: expected 2 numbers, received 1"),
        (lambda j: j.long_tail("shape", 0), "ratio: expected a finite number > 0"),
        (lambda j: j.correlate("shape", "shape", {}, 0.5), "given: expected another factor"),
        (lambda j: j.correlate("colour", "shape", {"star": "red"}, 1.5), "strength: expected from 0 to 1"),
        (lambda j: j.hold_out(("shape",), [(s,) for s in FACTORS.shapes]), "joint: expected a combination that can"),
        (lambda j: j.hold_out(("shape", "colour"), [("star",)]), "combinations: expected one value of each"),
        (lambda j: j.together({"shape": "star"}, {"colour": "red"}, 0.5), "also: expected things that are not"),
        (lambda j: j.together({"background": "black"}, {"colour": "red"}, 0.5), "factor of a thing: expected one of"),
        (lambda j: j.distinct(), "of: expected at least one factor"),
        (lambda j: j.distinct("size"), "of: expected 4 or more combinations"),
    ],
)
def test_verbs_refuse(make: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(Joint(FACTORS))  # type: ignore[operator]


def test_a_pair_that_cannot_occur_is_refused() -> None:
    joint = Joint(FACTORS).hold_out(("shape", "colour"), [("star", "red")])
    with pytest.raises(ValueError, match="pairs: expected combinations that can occur"):
        joint.correlate("colour", "shape", {"star": "red"}, 0.5)
