"""FALinear computes feedback alignment, and is otherwise a drop-in for nn.Linear."""

import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from fa_linear import FALinear


def gradients(layer, input, error, autocast=False):
    """Gradients of <layer(input), error>: of the input, then of each parameter."""
    input = input.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = layer(input)
    return torch.autograd.grad(output, [input, *layer.parameters()], error.to(output.dtype))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 5, 4, 6), (0, 6)])
def test_the_input_gradient_is_error_times_feedback_and_nothing_else_differs(shape, bias):
    fa, bp = FALinear(6, 3, bias), nn.Linear(6, 3, bias)
    feedback = fa.feedback.clone()
    fa.load_state_dict(bp.state_dict(), strict=False)
    input, error = torch.randn(shape), torch.randn(*shape[:-1], 3)
    torch.testing.assert_close(fa(input), bp(input))
    fa_input, *fa_rest = gradients(fa, input, error)
    bp_input, *bp_rest = gradients(bp, input, error)
    torch.testing.assert_close(fa_input, error @ feedback)
    torch.testing.assert_close(bp_input, error @ fa.weight)
    torch.testing.assert_close(fa_rest, bp_rest)
    assert len(fa_rest) == 1 + bias
    fa(input).backward(error)  # as a first layer, whose input has no gradient
    torch.testing.assert_close([p.grad for p in fa.parameters()], bp_rest)


def test_feedback_and_weight_are_two_draws_of_linears_weight_anew_by_reset_parameters():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 3), nn.Linear(6, 3)
    torch.manual_seed(0)
    layer = FALinear(6, 3)
    assert torch.equal(layer.feedback, first.weight)
    assert all(map(torch.equal, layer.parameters(), second.parameters()))
    layer.reset_parameters()
    assert not torch.isclose(layer.feedback, first.weight).any()


def test_the_feedback_is_saved_converted_and_moved_with_the_weights_but_not_trained():
    layer = FALinear(6, 3, device="meta", dtype=torch.float64)
    assert (layer.feedback.device, layer.feedback.dtype) == (layer.weight.device, torch.float64)
    layer.to_empty(device="cpu").reset_parameters()
    twin = FALinear(6, 3).double()
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.feedback, layer.feedback)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


def test_the_exact_law_behind_alignment():
    """Any mini-batch and step size: only plain SGD and the linear hidden layer are assumed."""
    network = nn.Sequential(nn.Linear(12, 7), FALinear(7, 4)).double()
    W0, b0, *_ = start = [parameter.detach().clone() for parameter in network.parameters()]
    F.cross_entropy(network(torch.randn(8, 12).double()), torch.arange(8) % 4).backward()
    torch.optim.SGD(network.parameters(), lr=10).step()
    dW0, db0, dW, _ = (now.detach() - old for now, old in zip(network.parameters(), start))
    assert dW.norm() > 0.1
    torch.testing.assert_close(network[1].feedback.T @ dW, dW0 @ W0.T + db0.outer(b0))


def test_works_under_vmap_compile_and_autocast():
    layer, inputs, errors = FALinear(6, 3), torch.randn(7, 6), torch.randn(7, 3)
    gradients_of_examples = vmap(grad(lambda input: layer(input).square().sum()))(inputs)
    torch.testing.assert_close(gradients_of_examples, 2 * layer(inputs) @ layer.feedback)
    expected = gradients(layer, inputs, errors)
    # aot_eager traces forward and backward as the default does, but needs no C++ compiler.
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, inputs, errors), expected)
    rounded = gradients(layer, inputs, errors, autocast=True)  # checked to be float32, as expected
    torch.testing.assert_close(rounded, expected, rtol=0.02, atol=0.1)


def test_what_feedback_alignment_is_not_defined_for_is_refused_or_as_the_docstring_says():
    layer, input = FALinear(6, 3), torch.randn(4, 6, requires_grad=True)
    with pytest.raises(NotImplementedError, match="forward mode"):
        jvp(layer, (input,), (input,))
    with pytest.raises(TypeError, match="real numbers"):
        FALinear(6, 3, dtype=torch.complex64)(input.to(torch.complex64))
    (message,) = torch.autograd.grad(layer(input).square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        message.square().sum().backward()
    (message,) = torch.autograd.grad(layer(input).sum(), input, create_graph=True)
    assert not message.requires_grad
    assert not grad(lambda input: grad(lambda x: layer(x).square().sum())(input).sum())(input).any()
    exported = torch.export.export(layer, (input,), strict=False).module()
    (gradient,) = torch.autograd.grad(exported(input).sum(), input)
    torch.testing.assert_close(gradient, torch.ones(4, 3) @ layer.weight)
