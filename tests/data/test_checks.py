# SPDX-License-Identifier: Apache-2.0
"""What `pefomed data check` finds, says and keeps to itself, and the split without leaks that it makes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pefomed_recipes.answers import MajorityBaseline
from pefomed_recipes.data import image_facts
from pefomed_recipes.data.check_report import as_markdown, write_check
from pefomed_recipes.data.checks import Check, check_dataset, compare_counts
from pefomed_recipes.data.datasets_index import SOURCES, load_samples, stream_samples
from pefomed_recipes.data.reading import DatasetError, Layout
from pefomed_recipes.data.tallies import SplitTally, length_summary
from pefomed_recipes.errors import ConfigError
from pefomed_recipes.records import Sample

from .conftest import DataCheck, check, found, shared
from .fixtures.dicom_files import RAMP, dicom_of, encoded
from .fixtures.vqa_rad import write_vqa_rad_prepared
from .small_sets import two_view_studies, write_image, write_set

Rows = Mapping[str, Any]


# ------------------------------------------------------------------------------------------------------------- leaks


@pytest.mark.parametrize(
    ("by", "train", "test"),
    [
        ("image", {"image_id": "shared"}, {"image_id": "shared"}),
        ("study", {"study_id": "s1"}, {"study_id": "s1"}),
        ("patient", {"patient_id": "p1"}, {"patient_id": "p1"}),
        ("file", {"image": "images/one.png"}, {"image": "images/one.png", "image_id": "other"}),
    ],
)
def test_a_leak_is_found_by_image_study_and_patient(tmp_path: Path, by: str, train: Rows, test: Rows) -> None:
    other = {"study_id": "s0", "patient_id": "p0", "image_id": "i0"}
    root = write_set(tmp_path, {"train": [train, {}], "test": [{"id": "leaky", **test}, other]})
    checked = check(root)
    leak = shared(checked, by)
    assert leak is not None
    assert (leak["groups"], leak["samples"], leak["names"]) == (1, 1, ["leaky"])
    assert ("test", ["leaky"]) in found(checked, "leakage")
    assert not checked.report["passed"]
    assert check(root, allow=["leakage"]).report["passed"]


def test_equal_pictures_are_found_under_other_names_and_in_other_files(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"train": [{}], "test": [{"image": "images/copy.bmp"}, {}]})
    Image.open(root / "images/train-0.png").save(root / "images/copy.bmp")
    checked = check(root)
    leak = shared(checked, "content")
    assert leak is not None
    assert (leak["groups"], leak["of"]) == (1, 2)
    assert found(checked, "leakage") == [("test", ["images/train-0.png = images/copy.bmp"])]


def test_samples_that_stand_in_both_splits_are_counted(tmp_path: Path) -> None:
    twin = {"image": "images/one.png", "question": "What Is It?", "answer": "A Cyst"}
    root = write_set(tmp_path, {"train": [twin], "test": [{**twin, "answer": "a cyst"}, {"image": "images/one.png"}]})
    leak = shared(check(root), "sample")
    assert leak is not None
    assert (leak["groups"], leak["of"]) == (1, 2)


def test_a_clean_set_passes_and_shares_nothing(tmp_path: Path) -> None:
    checked = check(two_view_studies(tmp_path, {"train": 4, "validation": 2, "test": 2}))
    assert checked.report["findings"] == []
    assert checked.report["passed"]
    assert {entry["groups"] for entry in checked.report["leakage"]} == {0}
    assert checked.report["splits"]["train"]["studies"] == 4
    assert checked.report["splits"]["train"]["images"] == 8


# ------------------------------------------------------------------------------------------------- images and repeats


def test_missing_and_corrupt_images_are_named_each_once(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"train": [{}, {}, {}, {"image": "images/train-1.png"}], "test": [{}]})
    (root / "images/train-0.png").unlink()
    damaged = root / "images/train-1.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    (root / "images/train-2.png").write_text("<html>not here</html>", encoding="utf-8")
    checked = check(root)
    assert found(checked, "missing") == [("", ["images/train-0.png (train train-1)"])]
    [(_, corrupt)] = found(checked, "corrupt")
    assert [name.split(" ")[0] for name in corrupt] == ["images/train-1.png", "images/train-2.png"]
    assert "HTML" in corrupt[1]
    assert checked.report["images"]["good"] == 1
    assert str(tmp_path) not in json.dumps(checked.report)
    assert check(root, allow=["missing", "corrupt"]).report["passed"]


def test_dicom_images_that_may_show_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, modality in (("a", "US"), ("b", "CT")):
        (tmp_path / f"images/{name}.dcm").write_bytes(encoded(dicom_of(RAMP, Modality=modality)))
    rows = [{"image": f"images/{name}.dcm"} for name in "ab"]
    report = check(write_set(tmp_path, {"train": [*rows, {}]})).report
    assert report["images"]["may_hold_text"] == {"count": 1, "names": ["images/a.dcm"]}
    assert "1 DICOM images may show text" in as_markdown(report)
    assert "- images/a.dcm" in as_markdown(report)


def test_every_image_is_decoded_exactly_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_set(tmp_path, {"train": [{"image": f"images/{n % 3}.png"} for n in range(9)], "test": [{}, {}]})
    decoded: list[str] = []
    real = image_facts.load_image

    def counted(path: str) -> Image.Image:
        decoded.append(os.path.basename(path))
        return real(path)

    monkeypatch.setattr(image_facts, "load_image", counted)
    check(root)
    assert sorted(decoded) == ["0.png", "1.png", "2.png", "test-0.png", "test-1.png"]


@pytest.mark.integration
def test_several_processes_find_the_same(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"train": [{} for _ in range(40)], "test": [{} for _ in range(5)]})
    (root / "images/train-7.png").write_bytes(b"")
    alone, together = (check_dataset("jsonl", root, workers=workers) for workers in (1, 2))
    assert together.report == alone.report
    assert len(together.sheet) == len(alone.sheet)


def test_repeated_samples_ids_and_pictures_are_duplicates(tmp_path: Path) -> None:
    twin = {"image": "images/one.png", "question": "Where?", "answer": "left"}
    rows = [{**twin, "id": "first"}, {**twin, "id": "second"}, {"id": "both"}, {"image": "images/copy.png"}]
    root = write_set(tmp_path, {"train": rows, "test": [{"id": "both"}]})
    shutil.copyfile(root / "images/one.png", root / "images/copy.png")
    assert found(check(root), "duplicates") == [
        ("", ["both"]),
        ("train", ["second"]),
        ("train", ["images/one.png = images/copy.png"]),
    ]


def test_pictures_that_look_alike_in_two_splits_are_listed_and_do_not_fail(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"train": [{}, {}], "test": [{"image": "images/again.jpg"}]})
    with Image.open(root / "images/train-1.png") as image:
        image.convert("L").resize((60, 48)).save(root / "images/again.jpg", quality=60)
    checked = check(root)
    near = checked.report["near_duplicates"]
    assert near["pairs"] == 1
    assert near["listed"][0]["names"] == ["train images/train-1.png", "test images/again.jpg"]
    assert checked.report["passed"]


# ------------------------------------------------------------------------------------------------------------ counts


def tally(*samples: Sample) -> SplitTally:
    """A split that holds some samples."""
    counted = SplitTally()
    for sample in samples:
        counted.add(sample)
    return counted


ONE = Sample("1", "vqa", ["/d/a.png"], "Which?", ["left"], answer_type="OPEN", study_id="s")
PUBLISHED = {
    "train": {"samples": 3, "images": 2, "open": 3, "samples_zh": 1, "listed_images": 9},
    "all": {"studies": 1},
}


def published(numbers: Mapping[str, Mapping[str, int]]) -> Layout:
    """A layout with published numbers."""
    return Layout("test", lambda root: True, lambda root, split: iter(()), "", numbers)


def test_counts_are_compared_with_the_published_ones() -> None:
    chinese = replace(ONE, id="3", language="zh", image_paths=["/d/b.png"])
    train = tally(ONE, replace(ONE, id="2"), chinese)
    findings, skipped = compare_counts(published(PUBLISHED), {"train": train}, "all")
    assert findings == []
    assert skipped == ["train listed_images"]
    findings, _ = compare_counts(published(PUBLISHED), {"train": tally(ONE), "test": tally(ONE)}, None)
    assert [finding["text"] for finding in findings] == [
        "samples: found 1, published 3",
        "images: found 1, published 2",
        "open: found 1, published 3",
        "samples_zh: found 0, published 1",
    ]


def test_one_language_is_compared_with_its_own_numbers_only() -> None:
    findings, skipped = compare_counts(published(PUBLISHED), {"train": tally(ONE)}, "zh")
    assert [finding["text"] for finding in findings] == ["samples_zh: found 0, published 1"]
    assert "train samples" in skipped and "all studies" in skipped


def test_a_published_split_that_is_not_there_is_a_mismatch_and_an_unread_one_is_not_compared() -> None:
    numbers = {"test": {"samples": 2}}
    [finding], _ = compare_counts(published(numbers), {"train": tally(ONE)}, None)
    assert finding["text"] == "samples: found 0, published 2"
    assert compare_counts(published(numbers), {"train": tally(ONE)}, None, incomplete=["test"]) == (
        [],
        ["test samples"],
    )


def test_whatever_a_source_publishes_is_measured_or_known_not_to_be() -> None:
    measured = {"samples", "images", "studies", "patients", "closed", "open"}
    for source in SOURCES.values():
        known = measured | {f"{what}_{language}" for what in ("samples", "images") for language in source.languages}
        for layout in source.layouts:
            for split, numbers in layout.published.items():
                assert split in ("train", "validation", "test", "all")
                unknown = {name for name in numbers if not name.startswith("listed_")} - known
                assert unknown == set(), (source.slug, layout.name)


def test_rows_that_a_reader_leaves_out_are_in_the_report(tmp_path: Path) -> None:
    write_vqa_rad_prepared(tmp_path)
    report = check_dataset("vqa_rad", tmp_path, workers=1).report
    assert report["notes"] == ["trainset.json: left out of the train split: 1 without an answer"]
    assert report["notes"][0] in as_markdown(report)


# ------------------------------------------------------------------------------------------------- texts and baseline


def test_distributions_lengths_and_laterality_are_those_of_the_samples(tmp_path: Path) -> None:
    rows = [
        {"question": "Is it on the left?", "answer": "yes", "answer_type": "CLOSED", "question_type": "POS"},
        {"question": "Where is it?", "answer": "upper right lobe", "answer_type": "OPEN", "question_type": "POS, ABN"},
        {"question": "Bright?", "answer": "no", "answer_type": "CLOSED", "language": "zh"},
        {"report": "The lungs are clear."},
    ]
    facts = check(write_set(tmp_path, {"train": rows}), count_tokens=len).report["splits"]["train"]
    assert facts["tasks"] == {"report": 1, "vqa": 3}
    assert facts["languages"] == {"en": 3, "zh": 1}
    assert facts["answer_types"] == {"": 1, "CLOSED": 2, "OPEN": 1}
    assert facts["question_types"] == {"ABN": 1, "POS": 2}
    assert facts["laterality_share"] == {"answer": 0.25, "instruction_or_answer": 0.5}
    assert facts["lengths"]["answer_words"] == {"mean": 2.25, "median": 1, "p90": 4, "p99": 4, "max": 4}
    assert facts["lengths"]["answer_tokens"]["max"] == len("The lungs are clear.")


def test_percentiles_are_the_smallest_length_that_covers_their_share() -> None:
    summary = length_summary(dict.fromkeys(range(1, 101), 1))
    assert summary == {"mean": 50.5, "median": 50, "p90": 90, "p99": 99, "max": 100}


def test_the_text_only_baseline_is_the_one_of_the_evaluation(tmp_path: Path) -> None:
    train = [{"question": "Side?", "answer": answer} for answer in ("left", "left", "right")]
    test = [
        {"question": "Side?", "answer": "Left", "answer_type": "OPEN"},
        {"question": "Side?", "answer": "Right", "answer_type": "OPEN"},
        {"question": "Clear?", "answer": "never", "answer_type": "CLOSED"},
    ]
    root = write_set(tmp_path, {"train": train, "test": test})
    report = check(root).report
    assert report["text_only_baseline"]["test"] == {
        "all": {"right": 0.3333, "of": 3},
        "OPEN": {"right": 0.5, "of": 2},
        "CLOSED": {"right": 0.0, "of": 1},
    }
    assert report["answers_not_seen_in_training"] == {"test": 0.3333}
    baseline = MajorityBaseline.fit(load_samples("jsonl", root, "test"))
    assert baseline.predict(ONE) in ("left", "never", "right")


def test_licence_and_credentials_travel_with_the_rows(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"train": [{"credentialed": True, "licence": "PhysioNet", "source": "mimic_cxr"}, {}]})
    first, second = stream_samples("jsonl", root, "train")
    assert (first.credentialed, first.licence, first.source) == (True, "PhysioNet", "mimic_cxr")
    assert (second.credentialed, second.licence, second.source) == (False, "", "jsonl")
    report = check(root).report
    assert report["credentialed"]
    assert "PhysioNet" in report["licences"]
    assert "Credentialed data" in as_markdown(report, short=True)


# ------------------------------------------------------------------------------------------------------ label errors


def test_different_answers_to_the_same_question_about_the_same_image_are_listed(tmp_path: Path) -> None:
    same = {"image": "images/one.png", "question": "Where is it?"}
    rows = [
        {**same, "id": "a", "answer": "left"},
        {**same, "id": "b", "question": "where is it", "answer": "right"},
        {**same, "id": "c", "image": "images/two.png", "answer": "right"},
        {**same, "id": "d", "question": "Is it?", "answer": "Yes"},
        {**same, "id": "e", "question": "Is it?", "answer": "yes."},
    ]
    assert check(write_set(tmp_path, {"train": rows})).report["labels_to_review"] == [
        {"kind": "conflict", "ids": ["a", "b"]}
    ]


def test_an_answer_that_resembles_no_other_of_its_question_is_listed(tmp_path: Path) -> None:
    answers = ["left"] * 6 + ["right"] * 6 + ["lefft", "pneumonia"]
    rows = [{"id": str(n), "question": "Which side?", "answer": answer} for n, answer in enumerate(answers)]
    rows += [{"id": f"open{n}", "question": "What is seen?", "answer": f"finding {n * 'x'}"} for n in range(12)]
    review = check(write_set(tmp_path, {"train": rows})).report["labels_to_review"]
    assert review == [{"kind": "outlier", "ids": ["13"]}]
    shown = check(tmp_path, show_text=True).report["labels_to_review"]
    assert shown == [{"kind": "outlier", "ids": ["13"], "question": "which side", "answers": ["pneumonia"]}]


# -------------------------------------------------------------------------------------------- what is written and said


def test_reports_and_logs_hold_no_text_of_a_sample(
    tmp_path: Path, data_check: DataCheck, caplog: pytest.LogCaptureFixture
) -> None:
    same = {"image": "images/one.png", "question": "Wherever quagga?"}
    rows = [{**same, "answer": "okapi"}, {**same, "answer": "narwhal"}, {**same, "answer": "okapi"}]
    rows += [{"report": "The axolotl is clear."}]
    root = write_set(tmp_path / "data", {"train": rows, "test": [{**same, "answer": "okapi"}]})
    (root / "images/train-3.png").write_bytes(b"axolotl")
    code, out, err = data_check("jsonl", "--root", root, "--out", "out", "--workers", "1")
    assert code == 1
    written = "".join((tmp_path / "out" / name).read_text(encoding="utf-8") for name in ("check.json", "check.md"))
    for word in ("quagga", "okapi", "narwhal", "axolotl"):
        assert word not in (written + out + err + caplog.text).lower()
    assert str(tmp_path) not in written + out
    code, out, _ = data_check("jsonl", "--root", root, "--out", "out", "--show-text", "--workers", "1")
    assert "narwhal" in (tmp_path / "out" / "check.md").read_text(encoding="utf-8")


def test_copies_of_an_image_with_other_answers_are_one_conflict(tmp_path: Path) -> None:
    rows = [{"question": "Which side?", "answer": answer} for answer in ("left", "right")]
    root = write_set(tmp_path / "data", {"train": rows})
    (root / "images/train-1.png").write_bytes((root / "images/train-0.png").read_bytes())
    reviewed = check(root).report["labels_to_review"]
    assert reviewed == [{"kind": "conflict", "ids": ["train-1", "train-2"]}]


def test_a_report_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    root = write_set(tmp_path / "data", {"train": [{}], "validation": [{}]})
    (root / "val.jsonl").write_bytes((root / "validation.jsonl").read_bytes())
    report = check(root).report
    assert "format" in {finding["kind"] for finding in report["findings"]}
    assert str(tmp_path) not in json.dumps(report)


def test_the_report_is_json_and_markdown_and_a_contact_sheet(tmp_path: Path) -> None:
    root = write_set(tmp_path / "data", {"train": [{} for _ in range(9)], "test": [{}, {}]})
    (root / "images/test-1.png").unlink()
    checked = check(root, sheet_images=6)
    folder = write_check(checked, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["check.json", "check.md", "contact_sheet.png"]
    assert json.loads((folder / "check.json").read_text(encoding="utf-8"))["findings"] == checked.report["findings"]
    assert [caption.split()[0] for _, caption in checked.sheet] == ["train"] * 4 + ["test"] * 2
    assert [picture is None for picture, _ in checked.sheet] == [False] * 5 + [True]
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert (sheet.format, sheet.width) == ("PNG", 5 * 244)
    write_check(Check(checked.report, []), folder)
    assert not (folder / "contact_sheet.png").exists()


def test_a_mismatch_exits_with_1_and_allow_lets_it_pass(tmp_path: Path, data_check: DataCheck) -> None:
    prepared = {"qid": 1, "image_name": "a.jpg", "image_organ": "HEAD", "phrase_type": "freeform"}
    asked = {"question": "Is it?", "question_type": "PRES", "answer": "yes", "answer_type": "CLOSED"}
    root = tmp_path / "vqa"
    write_image(root / "images/a.jpg", 1)
    for split in ("train", "test"):
        (root / f"{split}set.json").write_text(json.dumps([prepared | asked]), encoding="utf-8")
    code, out, err = data_check("vqa_rad", "--root", root)
    assert code == 1
    assert "samples: found 1, published 3,064" in out
    assert "leakage" in out
    assert err.count("\n") == 1
    code, out, _ = data_check("vqa_rad", "--root", root, "--allow", "counts")
    assert code == 1
    code, out, _ = data_check("vqa_rad", "--root", root, "--allow", "counts", "--allow", "leakage")
    assert code == 0
    assert "allowed, counts" in out
    assert "passed" in (tmp_path / "runs/data_check/vqa_rad/check.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["jsonl", "--allow", "leaks"], 2, "did you mean leakage?"),
        (["jsnol"], 2, "did you mean jsonl?"),
        (["jsonl", "--make-split", "image-disjoint"], 2, "--out"),
        (["jsonl", "--tokenizer", "nowhere"], 2, "no such folder"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_one_line(
    tmp_path: Path, data_check: DataCheck, arguments: list[str], code: int, named: str
) -> None:
    write_set(tmp_path / "data", {"train": [{}]})
    returned, out, err = data_check(*arguments, "--root", "data")
    assert (returned, out) == (code, "")
    assert named in err
    assert err.count("\n") == 1


def test_files_that_cannot_be_read_are_told_and_the_other_splits_are_checked(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"train": [{}, {}], "test": [{}]})
    with (root / "test.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('{"image": "images/x.png", "qestion": "?"}\n')
    checked = check(root)
    [finding] = [finding for finding in checked.report["findings"] if finding["kind"] == "format"]
    assert finding["split"] == "test" and "did you mean question?" in finding["text"]
    assert str(tmp_path) not in finding["text"]
    assert checked.report["incomplete_splits"] == ["test"]
    assert checked.report["splits"]["train"]["samples"] == 2


def test_an_unknown_split_is_told_and_a_folder_without_any_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path / "odd", {"everything": [{"split": "train"}, {"split": "dev"}]})
    checked = check(tmp_path / "odd")
    assert "split is not train" in checked.report["findings"][0]["text"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"expected train\.jsonl"):
        check(tmp_path / "empty")


def test_an_unknown_kind_cannot_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean counts"):
        check(write_set(tmp_path, {"train": [{}]}), allow=["count"])
