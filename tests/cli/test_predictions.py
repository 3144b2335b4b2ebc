import torch

from pl_losses.cli.predictions import interleaved, joined, write_predictions


def test_predictions_of_several_ranks_and_shapes(tmp_path):
    x = torch.arange(45.0).view(5, 3, 3)
    ranks = [
        joined([{"x": x[[0, 2]], "s": ["a", "c"]}, {"x": x[[4]], "s": ["e"]}]),
        joined([{"x": x[[1, 3]], "s": ["b", "d"]}]),
    ]
    answers = interleaved(ranks)
    for number in ("", "-1"):
        files = write_predictions(answers, tmp_path, list("uvwxy"))
        assert [path.name for path in files] == [f"predictions{number}.{end}" for end in ("csv", "pt")]
        assert files[0].read_text().split() == ["sample,name,s", "0,u,a", "1,v,b", "2,w,c", "3,x,d", "4,y,e"]
        assert torch.equal(torch.load(files[1], weights_only=True)["x"], x)
        assert torch.load(files[1], weights_only=True)["name"] == list("uvwxy")
    images = joined([torch.ones(1, 3, 4, 5), torch.ones(1, 3, 2, 2)])["output"]
    assert [image.shape for image in images] == [(3, 4, 5), (3, 2, 2)]
