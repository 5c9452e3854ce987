"""What is counted on a pretended GPU, against values computed by hand, and that it computes."""

import mmcv.ops.multi_scale_deform_attn as mmcv_attention
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from benchmarks.device_costs import Costs, Operator, ValueReadError, pretend_gpu
from tests.helpers.models import data_sample, detector

BOTH = pytest.mark.parametrize("values", [True, False])


def counted(function, *shapes, values=True):
    """The costs of a function of tensors of ones."""
    with pretend_gpu(values=values) as gpu:
        inputs = [torch.ones(shape, device=gpu.device) for shape in shapes]
        with gpu.count() as costs:
            function(*inputs)
    return costs


def numbers(costs):
    """Operators, launches, bytes, operations, syncs and uploads."""
    moved, operations = round(1e9 * costs.gigabytes), round(1e9 * costs.gflop)
    return (costs.operators, costs.launches, moved, operations, costs.syncs, costs.uploads)


@BOTH
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x + 1, (1, 1, 192, 0, 0, 0)),
        (lambda x: x.add_(1), (1, 1, 192, 0, 0, 0)),
        (lambda x: x.zero_(), (1, 1, 96, 0, 0, 0)),
        (lambda x: torch.add(x, x, out=torch.empty_like(x)), (1, 1, 192, 0, 0, 0)),
        (lambda x: x[1:].T.flip(0)[None], (1, 1, 128, 0, 0, 0)),  # views are free
        (lambda x: x[:1].expand(9, -1) * 2, (1, 1, 32 + 288, 0, 0, 0)),  # a row is read once
        (lambda x: x.clone(), (1, 1, 192, 0, 0, 0)),
        (lambda x: x.to(torch.float16), (1, 1, 96 + 48, 0, 0, 0)),
        (lambda x: x.masked_fill(x.bool(), 0.0), (2, 3, 120 + 192 + 24 + 192, 0, 0, 0)),
        (lambda x: x @ x.T, (1, 1, 192 + 36, 2 * 3 * 3 * 8, 0, 0)),
        (lambda x: torch.zeros(5, device=x.device), (1, 1, 20, 0, 0, 0)),
        (lambda x: torch.arange(5, device=x.device), (1, 1, 40, 0, 0, 0)),
        (lambda x: x.new_tensor([1.0, 2.0]), (0, 0, 0, 0, 0, 1)),
        (lambda x: x.cpu(), (0, 0, 0, 0, 1, 0)),
        (lambda x: torch.ones(3, 8).copy_(x), (0, 0, 0, 0, 1, 0)),
        (lambda x: x.copy_(torch.ones(3, 8)), (0, 0, 0, 0, 0, 1)),
        (lambda x: torch.ones(3, 8) @ torch.ones(8), (0, 0, 0, 0, 0, 0)),  # on the CPU
        # A table is read at the places of its indices.
        (lambda x: x[torch.zeros(2, dtype=torch.long, device=x.device)], (2, 2, 160, 0, 0, 0)),
        (lambda x: x.__setitem__(x > 0, 5.0), (2, 2, 120 + 216, 0, 0, 0)),  # a fill, no wait
        (lambda x: F.layer_norm(x, (8,)), (1, 1, 192 + 24, 0, 0, 0)),
        (lambda x: x.sort(), (1, 3, 96 + 96 + 192, 0, 0, 0)),
    ],
)
def test_operators(function, expected, values):
    assert numbers(counted(function, (3, 8), values=values)) == expected


@pytest.mark.parametrize(
    ("function", "syncs"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool(x.sum() > 3), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: torch.tensor([x.sum(), x[0].sum()]), 2),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x[x[:, 0] > 0][:, x[0] > 0], 2),
        (lambda x: x.unique(), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: x.masked_select(x > 0), 1),
    ],
)
def test_waits(function, syncs):
    assert counted(function, (3, 8)).syncs == syncs
    with pytest.raises(ValueReadError, match=r"values to be read back.*test_device_costs\.py:"):
        counted(function, (3, 8), values=False)


def test_lists_of_tensors_wait_for_each():
    costs = counted(lambda x: x.new_tensor([x.sum(), x[0].sum()]), (3, 8))
    assert (costs.syncs, costs.uploads) == (2, 1)


@BOTH
def test_numbers_of_the_gpu_are_put_by_indices(values):
    costs = counted(lambda x: x.__setitem__(x > 0, x[0, 0]), (3, 8), values=values)
    assert (costs.launches, costs.syncs) == (1 + 3 + 1, 1)


@BOTH
def test_convolutions(values):
    """PyTorch adds the bias to cuDNN's result."""
    plain, x, y = nn.Conv2d(4, 6, 3, bias=False), (1, 4, 10, 10), 4 * 6 * 8 * 8
    weight = plain.weight.numel() * 4
    operations = 2 * 6 * 8 * 8 * 4 * 9
    for bias in (False, True):
        with pretend_gpu(values=values) as gpu:
            conv = gpu.copy(nn.Conv2d(4, 6, 3, bias=bias))
            image = torch.ones(x, device=gpu.device)
            with gpu.count() as costs:
                conv(image)
        moved = 1600 + weight + y + bias * (24 + 2 * y)
        assert numbers(costs) == (1, 1 + bias, moved, operations, 0, 0)


@BOTH
def test_deformable_convolutions(values):
    """The kernels that torchvision's source launches, and copies of what is not contiguous."""
    x, offset, mask, weight = (1, 4, 6, 6), (1, 18, 6, 6), (1, 9, 6, 6), (8, 4, 3, 3)

    def convolve(x, offset, mask, weight, bias, layout=torch.contiguous_format):
        return torchvision.ops.deform_conv2d(
            x.contiguous(memory_format=layout), offset, weight, bias, padding=1, mask=mask
        )

    sides, out, columns = 4 * 36 * (4 + 18 + 9) + 4 * 8 * 36, 4 * 8 * 36, 4 * 36 * 36
    operations = 2 * 8 * 36 * 36
    costs = counted(convolve, x, offset, mask, weight, (8,), values=values)
    assert numbers(costs) == (1, 7, sides + 8 * out + 3 * columns, operations, 0, 0)
    last = counted(
        lambda *args: convolve(*args, layout=torch.channels_last),
        *(x, offset, mask, weight, (8,)),
        values=values,
    )
    assert (last.operators, last.launches) == (2, 9)  # to channels-last and back


@BOTH
def test_attention_is_one_kernel(values):
    def attend(*inputs):
        return F.scaled_dot_product_attention(*inputs)

    costs = counted(attend, *[(1, 2, 5, 8)] * 3, values=values)
    assert numbers(costs) == (1, 1, 4 * 4 * 80, 4 * 80 * 5, 0, 0)
    pixels = 6 * 4 + 3 * 2

    def deformable(value, places, weights):
        sizes = torch.tensor([[6, 4], [3, 2]], device=value.device)
        run = mmcv_attention.multi_scale_deformable_attn_pytorch
        return run(value, sizes, places, weights)

    shapes = (1, pixels, 2, 4), (1, 7, 2, 2, 3, 2), (1, 7, 2, 2, 3)
    costs = counted(deformable, *shapes, values=values)
    assert (costs.operators, costs.launches, costs.syncs, costs.uploads) == (1, 1, 0, 1)


@BOTH
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + torch.ones(8),
        lambda x: x[torch.tensor([0])],
        lambda x: x.index_select(0, torch.tensor([0])),
        lambda x: torch.stack([x, torch.ones(3, 8)]),
        lambda x: x.__setitem__(slice(None), torch.ones(3, 8) + x),
    ],
)
def test_tensors_of_the_cpu_are_refused(function, values):
    with pytest.raises(RuntimeError, match=r"on the GPU, got one on the CPU .*test_device_costs"):
        counted(function, (3, 8), values=values)
    # PyTorch passes numbers to kernels.
    assert counted(lambda x: x * torch.tensor(2.0), (3, 8), values=values).uploads == 0


def test_values_and_gradients_are_those_of_a_cpu():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten(2)).double()
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    expected = model(x).logsumexp(1).remainder(0.3).sum()
    expected.backward()
    with pretend_gpu(backward=True) as gpu:
        copy = gpu.copy(model)
        with torch.autocast(gpu.device.type, enabled=False), gpu.count() as costs:
            loss = copy(x.to(gpu.device)).logsumexp(1).remainder(0.3).sum()
            loss.backward()
        assert costs.uploads == 1 and costs.syncs == 0
        assert torch.equal(loss.detach().cpu(), expected.detach())
        for mine, theirs in zip(copy.parameters(), model.parameters(), strict=True):
            assert mine.device == gpu.device and mine.requires_grad
            assert torch.equal(mine.grad.cpu(), theirs.grad)
    assert model[0].weight.device.type == "cpu"
    with pytest.raises(ValueError, match="expected values=True for a backward pass"):
        pretend_gpu(values=False, backward=True).__enter__()


def test_in_place_operators_change_views():
    with pretend_gpu() as gpu, torch.inference_mode():
        x = torch.zeros(2, 3, device=gpu.device)
        x[0].add_(1)
        x[:, 1] = torch.tensor([5.0, 6.0], device=gpu.device)
        x.T.mul_(2)
        x[x == 12] = 7
        assert x.tolist() == [[2, 10, 2], [0, 7, 0]]
        assert x.nonzero().shape == (4, 2)


def test_fakes_and_values_count_alike():
    """The network of a whole model, forward, in evaluation."""
    found, whole, samples = [], detector().eval(), [data_sample((64, 96))]
    for values in (True, False):
        with pretend_gpu(values=values) as gpu, torch.no_grad():
            model = gpu.copy(whole)
            image = torch.ones(1, 3, 64, 96, device=gpu.device)
            with gpu.count() as costs:
                model(image, samples, mode="tensor")
        found.append(costs)
    # Memory formats differ a little.
    assert found[0].row() == pytest.approx(found[1].row(), rel=1e-2)
    assert found[0].launches == found[1].launches > 100
    assert found[0].syncs == found[0].uploads == 0


def test_counts_of_nested_calls_are_apart():
    with pretend_gpu() as gpu:
        x = torch.ones(4, device=gpu.device)
        x + 1
        with gpu.count() as outer:
            x + 1
            with gpu.count() as inner:
                x + 1
                x.sum().item()
        x + 1
    assert (outer.launches, outer.syncs, inner.launches, inner.syncs) == (1, 0, 2, 1)


def test_nothing_stays_patched():
    before = torch.inference_mode, torch.autocast, F.scaled_dot_product_attention
    with pretend_gpu() as gpu:
        x = torch.ones(2, device=gpu.device)
        assert torch.tensor([1], device="cuda").device.type == "cuda"
    assert before == (torch.inference_mode, torch.autocast, F.scaled_dot_product_attention)
    assert torch.backends.cudnn.enabled and not torch._C._only_lift_cpu_tensors()
    assert torch.equal(torch.tensor([1.0]) + 1, torch.tensor([2.0]))
    with pytest.raises(RuntimeError, match=r"expected a tensor of pretend_gpu\(\) to stay inside"):
        x + 1


def test_tables_and_estimates():
    costs = Costs(
        [
            Operator(
                "mm", "a.py:1", launches=1, bytes=10**9, operations=10**9, operand_bytes=10**9
            ),
            Operator("mm", "a.py:2", launches=1, bytes=10**6, operations=4 * 10**12),
            Operator("sort", "a.py:1", launches=3, bytes=1, syncs=1),
            Operator("item", "b.py:1", syncs=1, uploads=2),
        ]
    )
    assert costs.row() == {
        "operators": 3,
        "launches": 5,
        "GB of operands": 1,
        "GB moved": pytest.approx(1.001),
        "GFLOP": 4001,
        "syncs": 2,
        "uploads": 2,
    }
    # A GB at 2 TB/s, four TFLOP at 100 TFLOP/s and three launches of 10 microseconds.
    assert costs.milliseconds(2000, 100, 10) == pytest.approx(0.5 + 40 + 0.03)
    lines = costs.table().splitlines()
    assert [line.split()[1] for line in lines[2:]] == ["sort", "mm", "item"]
    assert lines[3].split()[3:6:2] == ["2", "2"]
    places = [line.split()[1] for line in costs.table("place").splitlines()[2:]]
    assert places == ["a.py:1", "a.py:2", "b.py:1"]
