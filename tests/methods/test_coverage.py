"""Selections by features, each against its definition."""

import torch

from potstill.methods.coverage import herd, k_center, k_medoids, moderate


def clusters():
    """Three clouds far apart, of 20, 10 and 5 points."""
    draws = torch.Generator().manual_seed(3)
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 80.0]])
    return torch.cat([c + torch.randn(n, 2, generator=draws) for c, n in zip(centres, (20, 10, 5), strict=True)])


def test_herding_takes_the_image_that_brings_the_mean_nearest():
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).double()
    mean, chosen = features.mean(0), []
    for _ in range(12):  # the definition, by trying every image
        left = [i for i in range(40) if i not in chosen]
        chosen.append(min(left, key=lambda i: float((mean - features[[*chosen, i]].mean(0)).norm())))
    assert herd(features, 12).tolist() == chosen


def test_the_mean_of_a_herd_is_nearer_than_that_of_random_rows():
    """A public implementation takes the argmax of the distance: the mean then runs away."""
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    mean = features.mean(0)
    apart = [float((features[rows].mean(0) - mean).norm()) for rows in (herd(features, 20), torch.arange(20))]
    assert apart[0] < 0.2 * apart[1]


def test_herding_on_five_points_by_hand():
    """The mean is 2: first 2 itself, then what brings the mean of two back to it."""
    points = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])
    assert herd(points, 3).tolist() == [2, 1, 3]


def test_k_center_takes_what_is_farthest_from_all_before():
    found = clusters()
    rows = k_center(found, 6, seed=1)
    for k in range(1, 6):
        nearest = torch.cdist(found, found[rows[:k]]).min(1).values
        assert int(rows[k]) == int(nearest.argmax())
    assert {int(row) // 20 if row < 20 else 1 + (int(row) >= 30) for row in rows[:3]} == {0, 1, 2}
    assert k_center(torch.ones(4, 2), 4, seed=0).unique().numel() == 4, "also where all are alike"


def test_medoids_are_one_of_each_cluster_and_none_twice():
    rows = k_medoids(clusters(), 3, seed=0)
    assert sorted(0 if row < 20 else 1 + (row >= 30) for row in rows.tolist()) == [0, 1, 2]
    assert k_medoids(torch.randn(5, 2), 5, seed=0).unique().numel() == 5


def test_moderate_takes_the_middle_of_the_distances_from_the_median():
    points = torch.tensor([[0.0], [0.1], [-1.0], [2.0], [9.0]])  # the median is 0.1
    assert sorted(moderate(points, 3).tolist()) == [0, 2, 3]
