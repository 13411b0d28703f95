"""FALinear computes feedback alignment, and is otherwise a drop-in for nn.Linear."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.func import grad, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from fa_linear import FALinear


def twins(shape=(4, 6), bias=True):
    """Return an FALinear, an nn.Linear with the same weights, an input and an error."""
    fa, bp = FALinear(6, 3, bias), nn.Linear(6, 3, bias)
    bp.load_state_dict(fa.state_dict(), strict=False)
    return fa, bp, torch.randn(shape), torch.randn(*shape[:-1], 3)


def gradients(forward, weights, input, error):
    """Return the gradients that an error at the outputs gives: to the input, to each weight."""
    input = input.detach().requires_grad_()
    outputs = forward(input)
    return [*torch.autograd.grad(outputs, [input, *weights], error.to(outputs.dtype))]


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 5, 6), (0, 6)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_only_the_message_is_not_that_of_nn_linear_but_the_error_times_b(shape, bias):
    fa, bp, input, error = twins(shape, bias)
    _, *learned = gradients(bp, bp.parameters(), input, error)
    assert_close(gradients(fa, fa.parameters(), input, error), [error @ fa.feedback, *learned])
    assert_close(fa(input), bp(input))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_parameter_gets_no_gradient_and_the_other_does(frozen):
    layer, _, input, error = twins()
    getattr(layer, frozen).requires_grad_(False)
    layer(input).backward(error)
    assert [name for name, weight in layer.named_parameters() if weight.grad is None] == [frozen]


def test_a_b_that_is_computed_from_the_weight_is_a_constant_to_the_backward_pass():
    layer, _, input, error = twins()
    for _step in range(3):
        layer.feedback = 2 * layer.weight + 0 * layer.feedback  # not detached
        found = gradients(layer, layer.parameters(), input, error)
        assert_close(found[:2], [error @ layer.feedback, error.T @ input])


def test_the_exact_law_behind_alignment():
    """B^T dW = dV V^T + dc c^T, for any mini-batch and rate: plain SGD and a linear hidden layer."""
    network = nn.Sequential(nn.Linear(12, 7), FALinear(7, 4)).double()
    V, c, W, _ = (weight.detach().clone() for weight in network.parameters())
    F.cross_entropy(network(torch.randn(8, 12).double()), torch.arange(8) % 4).backward()
    torch.optim.SGD(network.parameters(), lr=10).step()
    new_V, new_c, new_W, _ = network.parameters()
    law = (new_V - V) @ V.T + (new_c - c).outer(c)
    assert_close(network[1].feedback.T @ (new_W - W), law)


def test_a_network_whose_only_fa_layer_is_its_first_learns_by_bp():
    fa, bp, input, _ = twins()
    top = nn.Linear(3, 2)
    for first in fa, bp:
        top(first(input)).norm().backward()
    assert torch.equal(fa.weight.grad, bp.weight.grad)


def test_a_seeded_layer_has_the_weights_of_a_seeded_nn_linear():
    weights = []
    for kind in FALinear, nn.Linear:
        torch.manual_seed(1)
        weights.append([*kind(6, 3).parameters()])
    assert_close(*weights, rtol=0, atol=0)


def test_b_is_drawn_independently_from_the_distribution_of_w_each_time():
    layer = FALinear(100, 1000)
    W, B = layer.weight.detach().flatten(), layer.feedback.flatten()
    layer.reset_parameters()
    assert_close(B.sort().values, W.sort().values, rtol=0, atol=0.002)  # of values up to 0.1
    for other in W, layer.feedback.flatten():
        assert abs(F.cosine_similarity(other, B, dim=0)) < 0.02


def test_b_is_saved_and_converted_with_the_layer_and_is_no_parameter():
    layer = FALinear(6, 3).double()
    assert layer.state_dict().keys() - dict(layer.named_parameters()) == {"feedback"}
    assert layer.feedback.dtype == torch.float64


@pytest.mark.parametrize("use", ["vmap", "autocast", "compile", "export"])
def test_the_message_is_bs_under_vmap_autocast_and_compile_and_bps_once_exported(use):
    layer, _, input, error = twins()
    matrix = layer.weight if use == "export" else layer.feedback
    if use == "vmap":
        layer = vmap(layer)
    elif use == "autocast":
        layer = torch.autocast("cpu", dtype=torch.bfloat16)(layer)  # backward is outside of it
    elif use == "compile":
        layer = torch.compile(layer, fullgraph=True, backend="aot_eager")
    else:
        layer = torch.export.export(layer, (input.requires_grad_(),), strict=False).module()
    assert_close(gradients(layer, [], input, error), [error @ matrix], rtol=0.02, atol=0.02)


def test_a_vectorised_jacobian_is_b():
    layer, _, input, _ = twins(shape=(6,))
    assert_close(jacobian(layer, input, vectorize=True), layer.feedback)


def test_second_derivatives_are_refused():
    layer, _, input, _ = twins()
    outputs = layer(input.requires_grad_())
    (message,) = torch.autograd.grad(outputs.norm(), input, create_graph=True)
    with pytest.raises(RuntimeError):
        message.norm().backward()


def test_second_derivatives_are_zero_for_a_constant_error_and_in_nested_torch_func():
    layer, _, input, error = twins()
    outputs = layer(input.requires_grad_())
    (message,) = torch.autograd.grad(outputs, input, error, create_graph=True)
    assert not message.requires_grad
    message_of = grad(lambda input: layer(input).norm())
    assert not grad(lambda input: message_of(input).norm())(input).any()


def test_multihead_attention_sends_bps_message():
    attention, input = nn.MultiheadAttention(6, 2), torch.randn(4, 6)
    attention.out_proj = FALinear(6, 6)
    attention.out_proj.feedback.zero_()  # FA would send nothing
    (message,) = gradients(lambda x: attention(x, x, x)[0], [], input, input)
    assert message.all()
