"""What was kept of a junior's predictions and why: one HTML page with a picture per case, and the same as JSON."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_synthtumour.atomic_files import complete, write_json
from nnunet_synthtumour.pseudolabel_picture import COLOURS, NAMES
from nnunet_synthtumour.volumes import VOLUME, measure_in

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.1em;margin:0}table{border-collapse:collapse;margin:.4em 0}
td,th{border:1px solid #ccc;padding:.15em .6em;text-align:right}
td:first-child,th:first-child,td:last-child,th:last-child{text-align:left}
.case{border:1px solid #ccc;border-radius:6px;padding:.8em 1em;margin:1em 0;break-inside:avoid}
.case img{max-width:100%}.aside{background:#f6f6f6}.key{display:inline-block;width:1.6em;height:.5em;margin:0 .3em 0 1em}
code{background:#f3f3f3;padding:0 .2em}
@media print{body{margin:0;max-width:none}.case img{max-height:8.5cm}}
"""


def write_report(
    file: Path, records: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any], pictures: Sequence[Path]
) -> Path:
    """`file` and `pseudolabels.json` beside it; kept cases first, then those set aside."""
    of_case = {picture.stem: picture for picture in pictures}
    ordered = sorted(records, key=lambda record: (not record["kept"], record["case"]))
    plain = [{key: record[key] for key in record if key not in ("identity", "rules")} for record in ordered]
    write_json({"provenance": dict(provenance), "cases": plain}, file.with_name("pseudolabels.json"))
    cards = "".join(_card(record, of_case[record["case"]]) for record in ordered)
    title = f"Pseudo-labels of {provenance['patients_from']}"
    with complete(file) as scratch:
        scratch.write_text(
            f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
            f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>{_summary(records, provenance)}{cards}</html>",
            encoding="utf-8",
        )
    return file


def _summary(records: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]) -> str:
    kept = [record for record in records if record["kept"]]
    total = {name: sum(_sizes(record)[name] for record in kept) for name in ("tumour", "unsure", "dropped")}
    unit = measure_in(records[0]).shown
    folds = ", ".join(f"{fold} (after {epoch} epochs)" for fold, epoch in provenance["epochs"].items())
    legend = "".join(
        f"<span class='key' style='background:{colour}'></span>{NAMES[state]}" for state, colour in COLOURS.items()
    )
    return (
        f"<p><b>{len(kept)} of {len(records)} cases</b> have a pseudo-label: {total['tumour']:.1f} {unit} tumour in all. "
        f"In these cases {total['unsure']:.1f} {unit} are unsure and {total['dropped']:.1f} {unit} were dropped; both "
        "carry the ignore label. The other cases are set aside.</p>"
        f"<p>Junior: <code>{html.escape(provenance['junior'])}</code>, {html.escape(provenance['checkpoint'])}, "
        f"folds {html.escape(folds)}.</p>"
        f"<p>{_sentences(provenance['rules'])}</p>"
        f"{_overview(records, unit)}"
        f"<p>Each picture, from left to right: the image, the decision, the probability (dark to bright).{legend}</p>"
    )


def _sizes(record: Mapping[str, Any]) -> Any:
    return record[measure_in(record).unit]


def _overview(records: Sequence[Mapping[str, Any]], unit: str) -> str:
    """A row per case, those set aside first."""
    rows = "".join(
        f"<tr><td><a href='#{html.escape(r['case'])}'>{html.escape(r['case'])}</a></td>"
        + "".join(f"<td>{_sizes(r)[state]:.1f}</td>" for state in ("tumour", "unsure", "dropped"))
        + f"<td>{html.escape(r['reason'] or 'kept')}</td></tr>"
        for r in sorted(records, key=lambda r: (r["kept"], r["case"]))
    )
    head = f"<tr><th>case</th><th>tumour ({unit})</th><th>unsure ({unit})</th><th>dropped ({unit})</th><th>decision</th></tr>"
    return f"<table>{head}{rows}</table>"


def _sentences(rules: Mapping[str, Any]) -> str:
    """The rules in words."""
    return (
        f"A voxel is tumour from a probability of {rules['upper']:g} on and background below {rules['lower']:g}. "
        f"A component is dropped when it is smaller than {rules['min_ml']:g} ml, when its mean probability is below "
        f"{rules['min_confidence']:g}, when more than {100 * rules['max_rim_share']:g} % of it lie within "
        f"{rules['rim_mm']:g} mm of the host's border, or when it fills more than {100 * rules['max_host_share']:g} % "
        f"of the host. A case is set aside when nothing is left, or when what is unsure and dropped is more than "
        f"{100 * rules['max_doubt']:g} % of what is kept."
    )


def _card(record: Mapping[str, Any], picture: Path) -> str:
    sizes, unit = _sizes(record), measure_in(record).shown
    verdict = f"kept, {sizes['tumour']:.1f} {unit}" if record["kept"] else f"set aside: {record['reason']}"
    passed = "kept" if record["kept"] else "passes, but the case is set aside"
    rows = "".join(
        f"<tr><td>{i}</td><td>{c['ml']:.2f}</td><td>{c['confidence']:.2f}</td><td>{100 * c['rim_share']:.0f}</td>"
        f"<td>{html.escape('dropped: ' + c['dropped'] if c['dropped'] else passed)}</td></tr>"
        for i, c in enumerate(record["components"][:12], start=1)
    )
    more = len(record["components"]) - 12
    rows += f"<tr><td colspan='5'>and {more} smaller ones</td></tr>" if more > 0 else ""
    volume = "ml" if measure_in(record) == VOLUME else "as a ball (ml)"  # what min_ml is compared with
    head = (
        f"<tr><th>component</th><th>{volume}</th><th>mean probability</th><th>in the rim (%)</th><th>decision</th></tr>"
    )
    table = f"<table>{head}{rows}</table>" if rows else ""
    image = base64.b64encode(picture.read_bytes()).decode()
    name = html.escape(record["case"])
    return (
        f"<div class='case{'' if record['kept'] else ' aside'}' id='{name}'><h2>{name}: {html.escape(verdict)}</h2>"
        f"<p>{sizes['unsure']:.1f} {unit} unsure, {sizes['dropped']:.1f} {unit} dropped{_per_label(record)}</p>"
        f"<img alt='{name}' src='data:image/png;base64,{image}'>{table}</div>"
    )


def _per_label(record: Mapping[str, Any]) -> str:
    """The size of each label, where there are several."""
    measure = measure_in(record)
    sizes = record[f"{measure.unit}_per_label"]
    listed = ", ".join(f"{html.escape(name)} {size:.1f} {measure.shown}" for name, size in sizes.items())
    return f"; kept: {listed}" if len(sizes) > 1 else ""
