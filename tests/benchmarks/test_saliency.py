"""The saliency benchmark on a network and images as small as they come."""

import torch

from benchmarks import saliency


def test_every_figure_is_measured_and_written(tmp_path, capsys):
    arguments = ["--networks", "squeezenet1_1", "--images", "2", "--size", "24", "--rounds", "1", "--maps", "1"]
    saliency.main([*arguments, "--out", str(tmp_path)])
    lines = (tmp_path / "saliency_speed.csv").read_text().splitlines()
    assert len(lines) == 8
    assert "parameter saliency (squeezenet1_1, 2 images of 24 x 24)" in lines[2]
    assert "at most 1.5" in capsys.readouterr().out
    assert lines[-1].endswith("True")  # the difference to the loop


def test_the_loop_takes_the_mean_absolute_gradients():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1, bias=False), torch.nn.Flatten())
    with torch.no_grad():
        model[0].weight.zero_()
    x, y = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), torch.tensor([0, 1])
    torch.testing.assert_close(saliency.loop(model, x, y), torch.tensor([[0.5, 0.5], [1.5, 1.5]]))
