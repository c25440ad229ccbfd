# SPDX-License-Identifier: Apache-2.0
"""MIMIC-CXR: one frontal image a study, and of each report the section that says what is seen."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from pefomed_recipes.data.datasets_index import SOURCES, load_samples, stream_samples
from pefomed_recipes.data.mimic_sections import described, section_of
from pefomed_recipes.data.reading import DatasetError, MissingSplitError
from pefomed_recipes.records import Sample

from .fixtures.mimic_cxr import write_mimic_cxr_prepared, write_mimic_cxr_tree
from .fixtures.pictures import write_text

SECRET = "Mrs Doe has a fracture"
LINE = " " + "_" * 78


def read(root: Path, split: str = "train") -> list[Sample]:
    return list(stream_samples("mimic_cxr", root, split))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("suffix", "layout"), [(".jpg", "JPG"), (".dcm", "DICOM")])
def test_a_study_has_one_frontal_image_and_its_report(tmp_path, caplog, suffix, layout, nested):
    write_mimic_cxr_tree(tmp_path, suffix=suffix, nested=nested)
    assert SOURCES["mimic_cxr"].recognise(tmp_path).name == layout
    first, second = read(tmp_path)
    (path,) = first.image_paths
    assert path.endswith(f"files/p10/p10000032/s50000001/a3-pa{suffix}") and Path(path).is_file()
    assert first == Sample(
        id="s50000001", task="report", image_paths=[path], instruction="",
        answers=["No acute cardiopulmonary process, compared to ___."], organ="CHEST", modality="X-Ray",
        image_id="a3-pa", study_id="s50000001", patient_id="p10000032", split="train", source="mimic_cxr",
        licence="PhysioNet Credentialed Health Data License 1.5.0", credentialed=True,
    )  # fmt: skip
    # no PA; of two AP images, one of them known by its view code only, the first by dicom_id
    assert (second.image_id, second.answers, second.patient_id) == ("b1", ["Clear lungs."], "p10000032")
    assert "1 studies whose report says nothing, 1 studies without a frontal view" in caplog.text
    assert [sample.id for sample in read(tmp_path, "validation")] == ["s50000005"]
    assert [sample.answers for sample in read(tmp_path, "test")] == [["Nodule."]]


def test_tables_may_be_unpacked(tmp_path):
    write_mimic_cxr_tree(tmp_path)
    for table in ("split", "metadata"):
        packed = tmp_path / f"mimic-cxr-2.0.0-{table}.csv.gz"
        write_text(packed.with_suffix(""), gzip.decompress(packed.read_bytes()))
        packed.unlink()
    assert len(read(tmp_path)) == 2


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("mimic-cxr-2.0.0-metadata.csv.gz", "no mimic-cxr-2.0.0-metadata.csv.gz"),
        ("mimic-cxr-2.0.0-split.csv.gz", "not recognised as MIMIC-CXR"),
        ("files/p10/p10000032/s50000002.txt", "its report s50000002.txt is missing"),
    ],
)
def test_a_missing_part_is_named(tmp_path, gone, message):
    write_mimic_cxr_tree(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(DatasetError, match=message):
        read(tmp_path)


def test_without_any_report_the_archive_to_unpack_is_named(tmp_path):
    write_mimic_cxr_tree(tmp_path)
    for path in tmp_path.glob("files/*/*/*.txt"):
        path.unlink()
    with pytest.raises(DatasetError, match="no reports; unpack mimic-cxr-reports.zip"):
        read(tmp_path)


def test_a_missing_image_is_named_with_its_study(tmp_path):
    write_mimic_cxr_tree(tmp_path)
    (tmp_path / "files/p10/p10000032/s50000001/a3-pa.jpg").unlink()
    with pytest.raises(DatasetError, match=r"files/p10/p10000032/s50000001/a3-pa.jpg of s50000001"):
        load_samples("mimic_cxr", tmp_path, "train")


def test_rows_of_the_split_table_with_problems_are_all_named(tmp_path):
    write_mimic_cxr_tree(tmp_path)
    rows = [
        "dicom_id,study_id,subject_id,split", "a3-pa,50000001,10000032,train", "a3-pa,50000001,10000032,train",
        "../../x,50000002,10000032,train", "b1,50000002,../..,train", "b1,50000002,10000032,dev",
    ]  # fmt: skip
    write_text(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", gzip.compress("\n".join(rows).encode()))
    with pytest.raises(
        DatasetError, match=r"(?s)4 problems\n  line 3: the id of line 2 again.*line 4.*line 5.*line 6"
    ):
        read(tmp_path)


def test_a_split_table_without_rows_of_a_split_has_no_such_split(tmp_path):
    write_mimic_cxr_tree(tmp_path)
    rows = "dicom_id,study_id,subject_id,split\na3-pa,50000001,10000032,train\n"
    write_text(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", gzip.compress(rows.encode()))
    with pytest.raises(MissingSplitError):
        read(tmp_path, "validation")


def test_prepared_reports_keep_all_references_and_find_the_groups_in_the_path(tmp_path, caplog):
    write_mimic_cxr_prepared(tmp_path)
    first, second = read(tmp_path)
    assert (first.answers, second.answers) == (["No acute process."], ["Clear.", "Clear lungs."])
    assert first.id == "mimic_cxr-train-p10/p10000032/s50000001/a3-pa.jpg"
    assert (first.image_id, first.study_id, first.patient_id) == ("a3-pa", "s50000001", "p10000032")
    assert Path(first.image_paths[0]).is_file() and first.credentialed
    assert "1 with an empty report" in caplog.text


def test_prepared_entries_with_problems_are_all_named_without_their_text(tmp_path):
    text = json.dumps({"p10/a.jpg": [SECRET], "../b.jpg": [SECRET], "c.jpg": [[SECRET]], "d.jpg": SECRET})
    write_text(tmp_path / "train.json", text[:-1] + f', "p10/a.jpg": ["{SECRET}"]}}')
    with pytest.raises(
        DatasetError, match=r"(?s)3 problems\n  entry 2.*entry 3.*entry 5: the id of entry 1"
    ) as caught:
        read(tmp_path)
    assert SECRET not in str(caught.value)


# what is said -> (report, section and text that are taken)
REPORTS = {
    "the last impression": (
        " IMPRESSION: One.\n\n FINDINGS: Two.\n\n IMPRESSION:\n Three\n more.\n",
        "impression: Three more.",
    ),
    "an empty impression gives way": (" FINDINGS: Two.\n\n IMPRESSION: \n \n", "findings: Two."),
    "an empty last impression gives way": (" IMPRESSION: One.\n\n IMPRESSION: \n", "impression: One."),
    "a misspelt header": (" FINIDNGS: Two.\n\n IMPRESSON: One.\n", "impression: One."),
    "findings and impression in one": (" FINDINGS AND IMPRESSION: One.\n", "impression: One."),
    "a header with the views": (" CHEST, TWO VIEWS:  Two.\n", "findings: Two."),
    "a header in small letters": (" Findings: Two.\n\n Impression: One.\n", "impression: One."),
    "recommendations end an impression": (" IMPRESSION: One.\n RECOMMENDATION(S): Call.\n", "impression: One."),
    "an unknown header ends no findings": (
        " FINDINGS:\n TUBES: One.\n HILA: Two.\n",
        "findings: TUBES: One. HILA: Two.",
    ),
    "a header of views ends no findings": (
        " FINDINGS:\n Tubes.\n RIBS: Two.\n",
        "findings: Tubes. RIBS: Two.",
    ),
    "several headers of views": (
        " PORTABLE CHEST:  One.\n\n LATERAL VIEW:  Two.\n",
        "findings: One. LATERAL VIEW: Two.",
    ),
    "a header of views before a notification": (
        " HISTORY: Cough.\n\n PORTABLE CHEST RADIOGRAPH:  Two.\n\n NOTIFICATION: Dr ___ called.\n",
        "findings: Two.",
    ),
    "an impression stands above a header of views": (
        " CHEST, PA AND LATERAL:  Two.\n\n IMPRESSION:  One.\n",
        "impression: One.",
    ),
    "a header of views ends an impression": (" IMPRESSION:\n \n CHEST: Two.\n", "findings: Two."),
    "the last paragraph": (
        " HISTORY: Cough.\n \n COMPARISON: None.\n \n Lungs clear.\n \n No effusion.\n",
        "last_paragraph: Lungs clear. No effusion.",
    ),
    "an unknown header's text": (" INDICATION: Cough.\n\n SUPINE AP:\n Clear.\n", "last_paragraph: Clear."),
    "no header at all": (" Clear.\n", "last_paragraph: Clear."),
    "a comparison": (" INDICATION: Cough.\n\n COMPARISON: As on ___.\n", "comparison: As on ___."),
    "nothing": (" INDICATION: Cough.\n", ": "),
    "an empty report": ("", ": "),
    "a wet read before": (f" WET READ: Worse.\n{LINE}\n FINAL REPORT\n IMPRESSION: One.\n", "impression: One."),
    "an addendum before": (
        f" ADDENDUM\n IMPRESSION: Worse.\n{LINE}\n\n     FINAL REPORT\n FINDINGS: Two.\n",
        "findings: Two.",
    ),
    "an addendum after": (
        f" FINAL REPORT\n IMPRESSION: One.\n{LINE}\n ADDENDUM:\n IMPRESSION: Worse.\n",
        "impression: One.",
    ),
    "a final addendum after": (
        f" FINAL REPORT\n IMPRESSION: One.\n{LINE}\n FINAL ADDENDUM\n ADDENDUM: Called.\n",
        "impression: One.",
    ),
    "a line within the report": (f" FINAL REPORT\n FINDINGS: Two.\n{LINE}\n IMPRESSION: One.\n", "impression: One."),
    "a wet read without a final report": (f" WETREAD: Worse.\n{LINE}\n IMPRESSION: One.\n", "impression: One."),
    "nothing but a wet read": (" WET READ: Worse.\n IMPRESSION: One.\n", "impression: One."),
    "removed names are no line": (" FINAL REPORT\n IMPRESSION: One.\n ___\n Two.\n", "impression: One. ___ Two."),
    "CRLF": (" FINAL REPORT\r\n IMPRESSION: One,\r\n two.\r\n", "impression: One, two."),
}


@pytest.mark.parametrize(("report", "taken"), REPORTS.values(), ids=REPORTS)
def test_the_section_that_says_what_is_seen(report, taken):
    section, text = described(report)
    assert f"{section}: {' '.join(text.split())}" == taken


@pytest.mark.parametrize(
    ("section", "headers"),
    [
        ("impression", "IMPRESSION MPRESSION IMPRESSON IMPRRESSION IMOPRESSION IMPRESSOIN IMPRSSION IMPERSSION "
         "IMPESSION IMPRESION FINDINGS/IMPRESSION CONCLUSION CONCLUSIONS"),
        ("findings", "FINDINGS FINDING FINDINS FINDINDGS FINDGINGS FINDNGS FINDNINGS FINIDNGS"),
        ("comparison", "COMPARISON COMPARISONS COMPARISION COMPARSION COMPARRISON COMPARISIONS"),
        ("other", "INDICATION NDICATION IDICATION HISTORY HSITORY TECHNIQUE EXAM EXAMINATION WETREAD ADDENDUM"),
        ("unknown", "LINES HEART MEDICATION DEPRESSION AP"),
    ],
)  # fmt: skip
def test_misspelt_headers_are_recognised_and_others_are_not(section, headers):
    assert {section_of(header) for header in headers.split()} == {section}


@pytest.mark.parametrize(
    "header",
    [
        "CHEST", "CHEST, TWO VIEWS", "CHEST, PA AND LATERAL", "PORTABLE CHEST RADIOGRAPH", "PORTABLE SUPINE",
        "PA AND LATERAL CHEST RADIOGRAPHS", "AP AND LATERAL RADIOGRAPHS", "LATERAL AND PA RADIOGRAPHS", "PA AND LAT",
        "LATERAL AND AP RADIOGRAPHS", "FRONTAL AND LATERAL VIEWS OF THE CHEST", "FRONTAL VIEW", "FRONTAL UPRIGHT",
        "FRONTAL SEMI-UPRIGHT", "TWO VIEWS OF THE CHEST", "ONE VIEW", "SINGLE AP VIEW", "UPRIGHT PA VIEW",
        "LATERAL VIEW", "BONE WINDOWS", "LEFT RIBS", "CHEST EXAMINATION",
    ],
)  # fmt: skip
def test_a_header_that_names_the_views_heads_what_is_seen(header):
    assert section_of(header) == "findings"
    report = f" FINAL REPORT\n HISTORY: Cough.\n\n {header}:  Clear.\n\n NOTIFICATION: Dr ___ called.\n"
    assert described(report)[1].strip() == "Clear."


@pytest.mark.parametrize(
    ("header", "section"),
    [
        ("INDICATION FOR PORTABLE CHEST", "other"), ("REASON FOR CHEST RADIOGRAPH", "other"),
        ("CHEST COMPARISON", "comparison"), ("IMPRESSION, CHEST", "impression"), ("EXAMINATION", "other"),
    ],
)  # fmt: skip
def test_a_word_for_another_section_counts_more_than_the_views(header, section):
    assert section_of(header) == section
