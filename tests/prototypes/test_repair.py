"""Small clusters give up their rows and the largest ones are split."""

from __future__ import annotations

import pytest
import torch

from nearfar.prototypes import repair_clusters


@pytest.mark.oracle("interclr", 4)
@pytest.mark.parametrize("seed", range(5))
def test_no_cluster_stays_small_and_no_row_is_lost(seed: int) -> None:
    torch.manual_seed(seed)
    x, num, min_size = torch.randn(200, 6), 12, 10
    label = (torch.rand(200) ** 3 * num).long()  # crowded at 0, thin or empty at the end
    sizes = label.bincount(minlength=num)
    assert int(sizes.min()) < min_size
    centroid = torch.stack([x[label == c].mean(0) if int(sizes[c]) else torch.zeros(6) for c in range(num)])
    new, moved = repair_clusters(x, label, centroid, min_size=min_size)
    assert new.shape == label.shape
    assert int(new.min()) >= 0
    assert int(new.max()) < num
    after = new.bincount(minlength=num)
    assert int(after.sum()) == 200
    assert int(after.min()) >= min_size // 2  # halves of a cluster of fewer than twice min_size, at worst
    for c in range(num):
        if not torch.equal(new == c, label == c):
            torch.testing.assert_close(moved[c], x[new == c].mean(0))
        else:
            assert torch.equal(moved[c], centroid[c])


def test_nothing_to_do() -> None:
    x, label = torch.randn(8, 2), torch.arange(8) % 2
    centroid = torch.randn(2, 2)
    new, same = repair_clusters(x, label, centroid, min_size=4)
    assert torch.equal(new, label)
    assert torch.equal(same, centroid)
    assert new is not label


def test_a_member_of_a_small_cluster_goes_to_the_nearest_other() -> None:
    x = torch.tensor([[0.0], [0.1], [0.2], [10.0], [10.1], [10.2], [9.0]])
    label = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    new, centroid = repair_clusters(x, label, torch.tensor([[0.1], [10.1], [9.0]]), min_size=2)
    # 9.0 joins the cluster at 10, which is then the largest and is cut; a part of one takes the row next to the cut
    assert new[:3].tolist() == [0, 0, 0]
    assert set(new[3:].tolist()) == {1, 2}
    assert sorted(new.bincount().tolist()) == [2, 2, 3]
    assert int(new[6]) == int(new[3])
    torch.testing.assert_close(centroid[int(new[6])], torch.tensor([9.5]))


def test_the_cut_runs_between_two_clumps() -> None:
    x = torch.cat([torch.randn(30, 3) * 0.1, torch.randn(50, 3) * 0.1 + 4, torch.randn(20, 3) * 0.1 - 9])
    label = torch.cat([torch.zeros(80), torch.ones(20)]).long()
    centroid = torch.stack([x[:80].mean(0), x[80:].mean(0), torch.zeros(3)])
    new, _ = repair_clusters(x, label, centroid)
    assert [len(part.unique()) for part in new.split([30, 50, 20])] == [1, 1, 1]
    assert len(new.unique()) == 3


def test_equal_rows_are_halved() -> None:
    new, _ = repair_clusters(torch.ones(9, 2), torch.zeros(9).long(), torch.ones(2, 2))
    assert sorted(new.bincount().tolist()) == [4, 5]


def test_complaints() -> None:
    x, label, centroid = torch.randn(6, 2), torch.zeros(6).long(), torch.randn(2, 2)
    with pytest.raises(ValueError, match="label: expected clusters from 0 to 1"):
        repair_clusters(x, label + 2, centroid)
    with pytest.raises(ValueError, match=r"label: expected shape \(6,\)"):
        repair_clusters(x, label[:5], centroid)
    with pytest.raises(ValueError, match=r"centroid: expected shape \[K, 2\]"):
        repair_clusters(x, label, centroid[:, :1])
    with pytest.raises(ValueError, match="min_size: expected a number from 1 to 3, rows over clusters, received 4"):
        repair_clusters(x, label, centroid, min_size=4)
    with pytest.raises(ValueError, match="x: expected finite features"):
        repair_clusters(x / 0, label, centroid)
