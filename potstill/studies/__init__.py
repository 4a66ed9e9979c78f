"""Findings from many runs side by side, one file a study: what it runs, its table, its figure, its sentence."""

from potstill.report.study_page import Study
from potstill.studies import ablations, lossless, search, start_epochs

STUDIES: dict[str, Study] = {
    study.kind: study for study in (start_epochs.STUDY, search.STUDY, ablations.STUDY, lossless.STUDY)
}
