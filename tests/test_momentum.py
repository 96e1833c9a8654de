from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nearfar.distributed import convert_sync_batch_norm
from nearfar.momentum import Teacher, cosine_momentum


def _student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_updates_follow_the_closed_form() -> None:
    """A constant student s after n updates: s + m^n (t - s); a student that moves linearly, by the sum of weights."""
    student = _student()
    teacher = Teacher(student, 0.9)
    start = {k: v.clone().double() for k, v in teacher.module.named_parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    for _ in range(7):
        teacher.update(student)
    for (name, t), s in zip(teacher.module.named_parameters(), student.parameters(), strict=True):
        expected = s.double() + 0.9**7 * (start[name] - s.double())
        assert torch.allclose(t.double(), expected, atol=1e-6), name
    teacher.update(student, momentum=0.0)
    assert all(torch.equal(t, s) for t, s in zip(teacher.module.parameters(), student.parameters(), strict=True))
    frozen = copy.deepcopy(teacher.state_dict())
    with torch.no_grad():
        student[0].weight.add_(1)
    teacher.update(student, momentum=1.0)
    assert torch.equal(teacher.state_dict()["module.0.weight"], frozen["module.0.weight"])


def test_it_is_apart_from_the_student_and_without_gradient() -> None:
    student = _student()
    teacher = Teacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}
    assert not teacher(torch.randn(5, 3, requires_grad=True)).requires_grad


def test_buffers_are_copied_or_averaged_and_integers_copied() -> None:
    student = _student()
    copied, averaged = Teacher(student, 0.75), Teacher(student, 0.75, buffers="average")
    student(torch.randn(8, 3) + 3)
    mean = student[1].running_mean
    copied.update(student)
    averaged.update(student)
    assert torch.equal(copied.module[1].running_mean, mean)
    assert torch.allclose(averaged.module[1].running_mean, 0.25 * mean)
    assert int(copied.module[1].num_batches_tracked) == int(averaged.module[1].num_batches_tracked) == 1


def test_mode_is_its_own_and_frozen_norms_stay_frozen() -> None:
    student = nn.Sequential(_student(), nn.BatchNorm1d(2).eval())
    teacher, still = Teacher(student, mode="train"), Teacher(student, mode="eval")
    whole = nn.ModuleList([teacher, still])
    for mode in (True, False):
        whole.train(mode)
        assert teacher.training is mode
        assert teacher.module[0][1].training
        assert not teacher.module[1].training
        assert not any(m.training for m in still.module.modules())
    convert_sync_batch_norm(whole).train()
    assert teacher.module[0][1].training
    assert not teacher.module[1].training
    x = torch.randn(6, 3)
    assert torch.allclose(teacher.module[0][:2](x).mean(0), torch.zeros(4), atol=1e-5)  # its own batch's statistics
    assert torch.allclose(still(x[:1]), still(x)[:1])


def test_state_dict_holds_everything() -> None:
    student = _student()
    teacher = Teacher(student)
    with torch.no_grad():
        student[0].weight.mul_(2)
    teacher.update(student, 0.5)
    other = Teacher(_student())
    other.load_state_dict(teacher.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(teacher(x), other(x))
    assert len(teacher.state_dict()) == len(student.state_dict())


def test_cosine_momentum() -> None:
    assert cosine_momentum(0.0, 0.9) == pytest.approx(0.9)
    assert cosine_momentum(0.5, 0.9) == pytest.approx(0.95)
    assert cosine_momentum(1.0, 0.9) == 1.0
    assert cosine_momentum(1 / 3, 0.9, 0.99) == pytest.approx(0.99 - 0.09 * 0.75)
    with pytest.raises(ValueError, match="fraction"):
        cosine_momentum(1.5)


def test_bad_input_is_named() -> None:
    student = _student()
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\], received 1.5"):
        Teacher(student, 1.5)
    with pytest.raises((ValueError, TypeError), match="mode"):  # a TypeError where annotations are checked
        Teacher(student, mode="evaluate")
    teacher = Teacher(student)
    with pytest.raises(ValueError, match=r"student: expected the parameters.*others at \['3\.bias'\]"):
        teacher.update(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2, bias=False)))
    with pytest.raises(ValueError, match=r"student: expected the parameters.*3\.weight"):
        teacher.update(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 5)))
    with pytest.raises(ValueError, match="momentum"):
        teacher.update(student, -0.1)
