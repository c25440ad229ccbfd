# SPDX-License-Identifier: Apache-2.0
"""ROCO, ROCOv2, ImageCLEFmedical Caption and MEDICAT become samples from every form in which people have them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from pefomed_recipes.data.datasets_index import SOURCES, load_samples, stream_samples
from pefomed_recipes.data.parquet_images import read_parquet_image
from pefomed_recipes.data.reading import DatasetError, MissingSplitError, samples_to_dataset
from pefomed_recipes.records import Sample

from .fixtures.clef_caption import write_clef_caption_original, write_clef_caption_prepared
from .fixtures.medicat import NAME, figure, write_medicat_prepared, write_medicat_release
from .fixtures.pictures import picture_bytes, write_json, write_pictures, write_text
from .fixtures.roco import write_caption_parquet, write_roco_hub, write_roco_original, write_roco_prepared
from .fixtures.rocov2 import write_rocov2_hub, write_rocov2_original

SECRET = "Mrs Doe has a fracture"
LAYOUTS: list[tuple[str, str, Callable[[Path], None], dict[str, int]]] = [
    ("roco", "original, radiology", write_roco_original, {"train": 4, "validation": 1, "test": 1}),
    ("roco", "prepared", write_roco_prepared, {"train": 4, "validation": 1}),
    ("roco", "Hub", write_roco_hub, {"train": 4, "validation": 1}),
    ("rocov2", "original", write_rocov2_original, {"train": 2, "validation": 1, "test": 1}),
    ("rocov2", "Hub", write_rocov2_hub, {"train": 2, "test": 1}),
    ("clef_caption", "original", write_clef_caption_original, {"train": 3, "validation": 1}),
    ("clef_caption", "prepared", write_clef_caption_prepared, {"train": 2}),
    ("medicat", "release", write_medicat_release, {"train": 2}),
    ("medicat", "prepared", write_medicat_prepared, {"train": 1}),
]


def read(slug: str, root: Path, split: str = "train") -> list[Sample]:
    return list(stream_samples(slug, root, split))


def captions(samples: list[Sample]) -> dict[str, str]:
    return {sample.id: sample.answers[0] for sample in samples}


@pytest.mark.parametrize(("slug", "layout", "write", "counts"), LAYOUTS, ids=[f"{x[0]}-{x[1]}" for x in LAYOUTS])
def test_every_layout_is_recognised_and_gives_all_its_samples(tmp_path, caplog, slug, layout, write, counts):
    write(tmp_path)
    with caplog.at_level(logging.INFO):
        for split in ("train", "validation", "test"):
            if split not in counts:
                with pytest.raises(MissingSplitError):
                    read(slug, tmp_path, split)
                continue
            samples = read(slug, tmp_path, split)
            assert len(samples) == counts[split]
            assert all(Path(path.partition("#")[0]).is_file() for sample in samples for path in sample.image_paths)
            assert (
                len({sample.id for sample in samples}) == len({sample.image_id for sample in samples}) == len(samples)
            )
            assert {(s.task, s.instruction, s.split, s.source, s.credentialed) for s in samples} == {
                ("caption", "", split, slug, False)
            }
            assert all(sample.licence for sample in samples)
            assert not any(str(tmp_path) in value for sample in samples for value in (sample.id, sample.image_id))
    assert f"recognised as {SOURCES[slug].title}, {layout}" in caplog.text


@pytest.mark.parametrize("slug", ["roco", "rocov2", "clef_caption", "medicat"])
def test_a_folder_of_another_kind_is_refused_with_what_is_expected(tmp_path, slug):
    write_json(tmp_path / "train.json", [{"qid": 1, "image_name": "a.jpg"}])
    with pytest.raises(DatasetError, match="not recognised as .* Expected one of"):
        read(slug, tmp_path)


def test_roco_captions_keep_their_text_and_lose_only_blanks(tmp_path, caplog):
    write_roco_original(tmp_path)
    samples = read("roco", tmp_path)
    assert captions(samples) == {
        "ROCO_00001": "Axial MRI (coronal view).",
        "ROCO_00004": "Écho – a 3 × 2 cm mass, arrow.",
        "ROCO_00005": "TC.",
        "ROCO_00009": '"Lung" window: "clear',
    }
    assert samples[0].image_paths == [str(tmp_path / "data" / "train" / "radiology" / "images" / "ROCO_00001.jpg")]
    assert "left out of the train split: 1 with an empty caption" in caplog.text


def test_roco_figures_keep_their_own_licence(tmp_path):
    write_roco_original(tmp_path)
    first, second, *_ = read("roco", tmp_path)
    assert first.licence == "CC BY-NC" and second.licence == SOURCES["roco"].licence


def test_roco_without_radiology_is_read_as_non_radiology_and_val_is_a_spelling(tmp_path):
    write_roco_original(tmp_path, kinds=("non-radiology",), val="val")
    assert captions(read("roco", tmp_path / "data", "validation")) == {"ROCO_90002": "A chart."}
    assert SOURCES["roco"].recognise(tmp_path).published["test"] == {"samples": 612}


def test_roco_figures_that_were_never_fetched_are_listed_or_skipped(tmp_path, caplog):
    write_roco_original(tmp_path)
    (tmp_path / "data/train/radiology/images/ROCO_00005.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 image file is missing\n  data/train/radiology/images/ROCO_00005.jpg"):
        load_samples("roco", tmp_path, "train")
    assert len(load_samples("roco", tmp_path, "train", on_missing="skip")) == 3
    assert "1 image file is missing" in caplog.text


def test_roco_lines_with_problems_are_all_named_without_their_text(tmp_path):
    lines = f"ROCO_1\t {SECRET}\nROCO_2 {SECRET}\n../x\t {SECRET}\nROCO_1\t {SECRET}\n"
    write_text(tmp_path / "train/radiology/captions.txt", lines)
    with pytest.raises(DatasetError, match=r"(?s)3 problems.*line 2.*line 3.*line 4: the id of line 1") as caught:
        read("roco", tmp_path)
    assert SECRET not in str(caught.value)


def test_hub_images_are_named_by_file_and_row(tmp_path):
    write_roco_hub(tmp_path)
    samples = read("roco", tmp_path)
    references = [path for sample in samples for path in sample.image_paths]
    file = tmp_path / "data" / "train-00001-of-00002.parquet"
    # row 1 of the second file has an empty caption
    assert references[2:] == [f"{file}#0", f"{file}#2"]
    assert [read_parquet_image(path) for path in references] == [picture_bytes(f"{s.id}.jpg") for s in samples]
    assert [s.answers for s in samples] == [[caption] for caption in captions(samples).values()]


def test_an_id_that_two_hub_files_share_is_an_error_with_both_places(tmp_path):
    for number in (0, 1):
        write_caption_parquet(tmp_path / f"train-{number}.parquet", [("a", "CT."), (f"b{number}", "MRI.")])
    with pytest.raises(DatasetError, match=r"train-1.parquet: 1 problem\n  row 1: the id of train-0.parquet, row 1"):
        read("rocov2", tmp_path)


def test_rocov2_captions_licences_and_image_folders(tmp_path):
    for number, images in enumerate(("{}", "{}_images", "{0}_images/{0}", "images")):
        root = tmp_path / str(number)
        write_rocov2_original(root, images=images)
        first, second = read("rocov2", root)
        assert (first.id, first.answers) == ("ROCOv2_2023_train_000001", ['CT, axial "A", 2.5 cm.'])
        assert first.licence == "CC BY [Doe et al. (2020)]" and second.licence == "CC BY-NC-SA 4.0"
        assert second.answers == ["Angiographie – normale"]
        assert Path(first.image_paths[0]).is_file()


def test_clef_captions_survive_quotes_and_have_no_test_split(tmp_path):
    write_clef_caption_original(tmp_path)
    texts = list(captions(read("clef_caption", tmp_path)).values())
    assert texts == ["ct of the chest, 3 × 2 cm", 'a "b" view', '"open quote']
    assert read("clef_caption", tmp_path, "validation")[0].id == "ImageCLEFmedCaption_2022_valid_084258"
    with pytest.raises(MissingSplitError, match="caption_prediction_test.csv"):
        read("clef_caption", tmp_path, "test")


def test_clef_prepared_images_are_found_by_their_file_names_alone(tmp_path):
    write_clef_caption_prepared(tmp_path)
    samples = read("clef_caption", tmp_path)
    assert [Path(sample.image_paths[0]).parent for sample in samples] == [tmp_path / "images"] * 2


def test_medicat_reads_radiology_from_either_folder(tmp_path, caplog):
    for below, root in (("release/", tmp_path / "a"), ("", tmp_path / "b")):
        write_medicat_release(root, below=below)
        first, second = read("medicat", root)
        assert first.id == "aa11_1-Figure1-1.png"
        assert first.answers == ["Figure 1: (A) axial CT and (B) coronal CT."]
        assert first.image_paths == [str(root / below / "figures" / first.id)]
        assert (first.study_id, first.licence) == ("aa11", "cc-by")
        # the caption read from the PDF stands in; no licence is stated
        assert (second.answers, second.licence) == (["MRI of the knee"], "non-commercial research")
    assert "left out of the train split: 1 that are not radiology, 1 with an empty caption" in caplog.text


def test_medicat_lines_with_problems_are_all_named_without_their_text(tmp_path):
    rows = [figure("aa11", 1, SECRET), figure("aa11", 1, SECRET), figure("", 2, SECRET), figure("a", 3, SECRET)]
    rows[3]["s2_caption"] = [SECRET]
    write_text(tmp_path / NAME, "\n".join([*map(json.dumps, rows), '{"pdf_hash": "Mrs Doe', "[1]"]))
    with pytest.raises(
        DatasetError, match=r"(?s)5 problems.*line 2: the id of line 1 again.*line 6: found list"
    ) as error:
        read("medicat", tmp_path)
    assert "Mrs Doe" not in str(error.value)


def test_prepared_rows_with_problems_are_all_named(tmp_path, caplog):
    rows = [
        {"image": "a.jpg", "caption": "CT."},
        {"image": "../b.jpg", "caption": SECRET},
        {"image": "a.jpg", "caption": SECRET},
        {"image": 5, "caption": True},
        "text",
        {"image": "d.jpg", "caption": None},
        {"image": "e.jpg", "caption": float("nan")},
        {"image": "f.jpg", "caption": "\ud800"},
    ]
    write_text(tmp_path / "roco.json", json.dumps(rows))
    with pytest.raises(DatasetError, match=r"(?s)5 problems.*row 2: .*outside.*row 3: the id of row 1") as caught:
        read("roco", tmp_path)
    assert SECRET not in str(caught.value)


def test_two_prepared_files_of_one_split_are_refused(tmp_path):
    for name in ("roco_val.json", "val.json"):
        write_json(tmp_path / name, [{"image": "a.jpg", "caption": "CT."}])
    with pytest.raises(DatasetError, match="found roco_val.json and val.json; expected one file for validation"):
        read("roco", tmp_path, "validation")


def test_a_set_without_validation_split_holds_images_out(tmp_path):
    write_pictures(tmp_path, *(f"{number}.jpg" for number in range(10)))
    write_json(tmp_path / "train.json", [{"image": f"{number}.jpg", "caption": "CT."} for number in range(10)])
    train, held_out = (load_samples("medicat", tmp_path, split) for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (9, 1)
    assert samples_to_dataset(held_out)[0]["answers"] == ["CT."]


def test_published_counts_are_those_of_the_data_sets():
    counts = {
        (slug, layout.name): {split: n["samples"] for split, n in layout.published.items() if "samples" in n}
        for slug in ("roco", "rocov2", "clef_caption", "medicat")
        for layout in SOURCES[slug].layouts
    }
    assert counts["roco", "original, radiology"] == {"train": 65448, "validation": 8180, "test": 8179}
    assert sum(counts["rocov2", "original"].values()) == 80080
    assert counts["rocov2", "Hub"] == counts["rocov2", "original"]
    assert counts["clef_caption", "original"] == {"train": 83275, "validation": 7645}
