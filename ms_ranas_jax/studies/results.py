"""Writes what a study comes to: its table, its figure and a page with both."""

from __future__ import annotations

from collections.abc import Mapping
import os
import time
from typing import Any

from ms_ranas_jax import settings
from ms_ranas_jax.data.datasets import image_format
from ms_ranas_jax.report import html_page
from ms_ranas_jax.report import inputs
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import lock
from ms_ranas_jax.studies import picture
from ms_ranas_jax.studies import plan as plan_lib
from ms_ranas_jax.studies import table as table_lib

TABLE = 'table.json'
_LOCK = '.table'
_WAIT_SECONDS = 0.2


def write_table(plan: plan_lib.Plan, workdir: str) -> dict[str, Any]:
  """Writes `study/table.json` and `study/table.md` of the runs that are done.

  Args:
    plan: of the study.
    workdir: of the study.

  Returns:
    The content of `table.json`.

  Raises:
    UsageError: a result is broken; the message names the file.
    Held: another process is at it, which has seen all that this one has.
  """
  folder = os.path.join(workdir, plan_lib.FOLDER)
  dataset = settings.parse(plan.config).dataset
  _, num_classes = image_format(
    dataset.name, dataset.dir, dataset.picture_options, dataset.storage
  )
  # Under a lock, so that no table replaces one of more runs.
  with lock.hold(folder, _LOCK):
    table = table_lib.build_table(
      plan.figure, plan.config, _outcomes(plan, workdir), 1 / num_classes
    )
    files.write_json(os.path.join(folder, TABLE), table)
    files.write_text(
      os.path.join(folder, 'table.md'), table_lib.to_markdown(table)
    )
  return table


def write_results(plan: plan_lib.Plan, workdir: str) -> str:
  """Writes table, figure and `study/report.html` of a study that is done.

  Args:
    plan: of the study.
    workdir: of the study.

  Returns:
    The path of the page.

  Raises:
    UsageError: a result is broken; the message names the file.
  """
  while True:
    try:
      table = write_table(plan, workdir)
      break
    except lock.Held:
      time.sleep(_WAIT_SECONDS)
  folder = os.path.join(workdir, plan_lib.FOLDER)
  page = html_page.Page(folder)
  page.section('Results')
  page.figure(
    picture.draw(table, plan.figure.kind),
    table['figure'] or 'figure',
    f'{plan.figure.title}.',
    f'{plan.figure.title}. Marks are means over {len(plan.config.study.seeds)} '
    'seeds, bars their sample standard deviation.'
    + (
      ' Grey: published, by others and on other terms.'
      if table['published']
      else ''
    ),
  )
  page.table(*table_lib.measured_cells(table))
  if table['budget_range']:
    page.text(table_lib.area_sentence(table))
  if table['published']:
    page.section('Published')
    page.table(*table_lib.published_cells(table))
  path = os.path.join(folder, inputs.PAGE_NAME)
  files.write_text(
    path,
    page.markup(
      f'{table["figure"]}: {plan.figure.title}',
      [
        f'{table["size"]} size, {table["dataset"]}, '
        f'{table["num_test_images"]:,} test images.'
      ],
    ),
  )
  return path


def _outcomes(
  plan: plan_lib.Plan, workdir: str
) -> dict[tuple[str, int], Mapping[str, Any]]:
  """Reads the evaluations that there are."""
  outcomes: dict[tuple[str, int], Mapping[str, Any]] = {}
  for key, job in plan.trainings.items():
    if job.is_done(workdir):
      found = inputs.read_object(
        job.workdir(workdir),
        'evaluate/anytime.json',
        'exits',
        ('accuracy', 'macs', 'flops_msdnet', 'params', 'total_params', 'layer'),
      )
      if found is not None:
        outcomes[key] = found
  return outcomes
