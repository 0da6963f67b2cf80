"""Distillation: the loss equals its formula, the teacher is no part of the model, a resumed run equals another."""

import pytest
import tiny
import torch
import torch.nn.functional as F

from volo_seg.checkpoints import load_file
from volo_seg.commands import run
from volo_seg.config.load import load_config
from volo_seg.engine.recipe import apply_recipe
from volo_seg.errors import UserError
from volo_seg.models.losses.distillation import distillation_loss


@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_loss_is_the_divergence(temperature):
    student, teacher = torch.randn(2, 2, 5, 3, 4, dtype=torch.float64)
    student.requires_grad_()
    loss = distillation_loss(student, teacher, temperature=temperature)
    p, q = ((part / temperature).softmax(1) for part in (teacher, student))
    torch.testing.assert_close(loss, temperature**2 * (p * (p / q).log()).sum(1).mean())
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(grad, temperature * (q - p) / 24)
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, teacher, temperature=temperature), student)
    assert distillation_loss(teacher, teacher).abs() < 1e-12


def test_loss_resizes_and_takes_one_channel():
    student, teacher = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 7, 6)
    two = [
        torch.cat([torch.zeros_like(part), part], 1)
        for part in (student, F.interpolate(teacher, (4, 4), mode='bilinear'))
    ]
    torch.testing.assert_close(distillation_loss(student, teacher), distillation_loss(*two))
    assert distillation_loss(student.half(), teacher.half()).dtype is torch.float32


def test_student_learns_from_a_teacher_and_resumes_to_the_bit(data, trained, tmp_path):
    flags = ('--teacher', trained.config, trained.checkpoint)
    taught = tiny.train(data, tmp_path / 'taught', *flags)
    assert taught[0] > trained.losses[0]  # one more loss
    first = tiny.train(data, tmp_path / 'parts', *flags, train_cfg__max_iters=3)
    assert first + tiny.train(data, tmp_path / 'parts', *flags, '--resume') == taught
    one, other = (load_file(tmp_path / name / 'iter_6.pth') for name in ('taught', 'parts'))
    assert not tiny.differences(one['state_dict'], other['state_dict'])
    assert one['state_dict'].keys() == load_file(trained.checkpoint)['state_dict'].keys()
    config = load_config(str(tmp_path / 'taught' / 'tiny.py'))
    (hook,) = (hook for hook in config.custom_hooks if hook.type == 'DistillationHook')
    assert hook.checkpoint == str(trained.checkpoint)
    numbers = ('--amp', 'bf16', '--temperature', '1', '--teacher-weight', '0.5')
    half = tiny.train(data, tmp_path / 'half', *flags, *numbers, train_cfg__max_iters=2)
    assert all(torch.tensor(half).isfinite())


def test_teacher_of_other_classes_is_refused_in_a_sentence(data, trained, tmp_path, capsys):
    other = tiny.make_data(tmp_path / 'two')
    (other / 'classes.txt').write_text('a\nb\nc\nd\n')
    status = run(
        'train', tiny.words(other, tmp_path / 'run', '--no-check', '--teacher', trained.config, trained.checkpoint)
    )
    told = capsys.readouterr().err
    assert status == 2 and 'has 3 classes, and the network that it teaches has 4' in told


@pytest.mark.parametrize(
    ('change', 'settings', 'message'),
    [
        ({'model.decode_head.type': 'UPerHead'}, {}, 'which does not learn from soft labels; use VOLOUPerHead'),
        ({}, {'teacher': None}, 'name one by --teacher'),
        ({}, {'teacher': ('nothing.py', 'x.pth')}, "--teacher: config 'nothing.py'"),
    ],
)
def test_mistakes(data, trained, change, settings, message):
    config = load_config(str(data / 'tiny.py'), tiny.pairs_of(change))
    teacher = {'teacher': (str(trained.config), str(trained.checkpoint)), 'temperature': 2.0, **settings}
    with pytest.raises(UserError, match=message):
        apply_recipe(config, **teacher)
