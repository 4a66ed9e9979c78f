"""Instance norm against PyTorch's, as it is compiled and as it is not."""

import torch

from potstill import seeds
from potstill.networks.norm import InstanceNorm


def test_instance_norm_normalises_each_channel_of_each_image():
    x = torch.randn(3, 6, 5, 5)
    expected = torch.nn.InstanceNorm2d(6, affine=True)(x)
    assert torch.allclose(InstanceNorm(6, 6)(x), expected, atol=1e-5)


def test_the_compiled_formula_equals_the_plain_one_off_centre_too():
    norm, draws = InstanceNorm(4, 4), seeds.generator(0, "test")
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter, generator=draws)
    means = 10 * torch.arange(4)[:, None, None] / 3  # of 0 to 10 deviations
    x = torch.randn(3, 4, 16, 16, generator=draws) + means
    with torch.no_grad():
        found = torch.compile(norm, backend="eager", fullgraph=True)(x)
        assert torch.allclose(found, norm(x), atol=1e-4)
        assert torch.allclose(torch.compile(norm.double(), backend="eager")(x.double()), norm(x.double()), atol=1e-12)
