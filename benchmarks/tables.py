"""Writes tables in benchmarks/README.md from results/*.json.

python benchmarks/tables.py          # writes them
python benchmarks/tables.py --check  # says whether they are up to date
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
import pathlib
import sys
from typing import Any

import exported_rows
import made_params as made
import on_gpu
import options as training_options
import ranking as rank

from ms_ranas_jax.report import milliseconds
from ms_ranas_jax.runtime import files

_HERE = pathlib.Path(__file__).resolve().parent
_MISSING = 'not yet measured'
_FORMS = ('float32', 'int8')


def _read(results: pathlib.Path, name: str) -> dict[str, Any] | None:
  path = results / name
  return files.read_json(path) if path.is_file() else None


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  return [
    f'| {" | ".join(heads)} |',
    f'|{"---|" * len(heads)}',
    *(f'| {" | ".join(row)} |' for row in rows),
  ]


def _time(record: Mapping[str, Any] | None) -> str:
  if record is None:
    return _MISSING
  if record['status'] != 'measured':
    return f'{_MISSING} ({record["status"]}: {record["reason"]})'
  if 'median_s' not in record:
    return f'ready after {record["ready_s"]:.1f} s'
  times = [1e3 * record[k] for k in ('median_s', 'min_s', 'max_s')]
  text = '{:.2f} ms ({:.2f} to {:.2f})'.format(*times)
  if 'hours_in_all' in record:
    text += f'; {record["hours_in_all"]:.1f} h in all'
  return text


def _memory(record: Mapping[str, Any] | None) -> str:
  peak = record and record.get('peak_bytes')
  return f'{peak / 1e9:.2f} GB' if peak else '–'


def _seconds(record: Mapping[str, Any] | None) -> str:
  return (
    f'{record["compile_s"]:.1f} s'
    if (record and record.get('compile_s'))
    else '–'
  )


def _introduction(result: Mapping[str, Any] | None, half: str) -> list[str]:
  command = f'benchmarks/on_gpu.sh {half}'
  if result is None:
    return [f'`{command}`: {_MISSING}.', '']
  checks = ''.join(
    f' {check["name"].capitalize()}: {check["status"]} ({check["said"]}).'
    for check in result['checks']
  )
  return [
    f'`{result["command"]}`, {result["date"]}: {result["device"]}, '
    f'{result["cores"]} processor cores, jax {result["jax"]}.{checks}',
    '',
  ]


def _found(result: Mapping[str, Any] | None) -> dict[tuple[str, str], Any]:
  jobs = result['jobs'] if result else ()
  return {(job['name'], job['variant']): job for job in jobs}


def gpu_first(results: pathlib.Path) -> list[str]:
  """Returns the table of ours on a GPU.

  Args:
    results: the folder of the results.
  """
  result = _read(results, 'gpu_first.json')
  found = _found(result)
  rows = []
  for job in on_gpu.first_half():
    record = found.get((job.name, 'ours'))
    rows.append((job.name, _time(record), _seconds(record), _memory(record)))
  heads = 'what', 'median (min to max)', 'compile, side by side', 'peak memory'
  return [*_introduction(result, 'first'), *_table(heads, rows)]


def gpu_second(results: pathlib.Path) -> list[str]:
  """Returns the table of ours beside the references on a GPU.

  Args:
    results: the folder of the results.
  """
  result = _read(results, 'gpu_second.json')
  found = _found(result)
  rows = []
  for job in on_gpu.second_half():
    variant = job.variant or 'ours'
    record = found.get((job.name, variant))
    rows.append((job.name, variant, _time(record), _memory(record)))
  heads = 'what', 'who', 'median (min to max)', 'peak memory'
  return [*_introduction(result, 'second'), *_table(heads, rows)]


# The models of which leaving early was timed, and how their folders were made.
_MODELS = {
  'digits': 'configs/digits.py',
  'cifar10_cpu': 'configs/cifar10_cpu.py',
  'msdnet': 'configs/msdnet_cifar10.py, five blocks',
  'paper': "the paper's network: paper_cell.json, 7 layers, 3 scales",
}


def early_exit(results: pathlib.Path) -> list[str]:
  """Returns the table of what leaving early saves.

  Args:
    results: the folder of the results.
  """
  rows = []
  for name, what in _MODELS.items():
    result = _read(results, f'early_exit_{name}.json')
    if result is None:
      rows.append((what, *[_MISSING] * 6))
      continue
    one, many = (batch['times'] for batch in result['batches'])
    start = sorted(result['start_seconds'])
    rows.append(
      (
        what,
        f'{one["whole network, one program"]["median_ms"]:.2f} ms',
        f'{one["one step after another"]["over_whole"]:.2f}',
        *(f'{many["exit 0"][f"share_of_{x}"]:.0%}' for x in ('macs', 'time')),
        f'{many["half leave at exit 0"]["share_of_time"]:.0%}',
        f'{start[len(start) // 2]:.1f} s',
      )
    )
  heads = (
    'network',
    'whole, batch 1',
    'steps over whole, batch 1',
    'exit 0: macs',
    'exit 0: time, batch 64',
    'half leave at exit 0: time, batch 64',
    'import, load, first prediction',
  )
  return _table(heads, rows)


def converted(results: pathlib.Path) -> list[str]:
  """Returns the table of converted networks beside the code they are from.

  Args:
    results: the folder of the results.
  """
  result = _read(results, 'converted.json')
  if result is None:
    return [f'{_MISSING}.']
  rows = []
  for name, case in result['cases'].items():
    worst = max(case['relative_difference'])
    deviation = min(case['deviation_over_images'])
    rows.append(
      (
        name,
        f'{case["params"]:,}',
        f'{len(case["relative_difference"])}',
        f'{case["images"]}',
        f'{worst:.1e}',
        f'{deviation:.1e}',
      )
    )
  heads = (
    'network',
    'params',
    'exits',
    'images',
    'largest difference',
    'deviation over images, at least',
  )
  told = (
    f'{result["date"]}: {result["machine"]}, Python {result["python"]}, jax '
    f'{result["jax"]}, torch {result["torch"]}, seed {result["seed"]}.'
  )
  return [told, '', *_table(heads, rows)]


def exported(results: pathlib.Path) -> list[str]:
  """Returns the table of exports beside torch's of the public code.

  Args:
    results: the folder of the results.
  """
  result = _read(results, 'exported.json')
  if result is None:
    return [f'{_MISSING}.']
  machine = result['machine']
  note = f' {result["note"]}' if result['note'] else ''
  told = (
    f'{result["date"]}: {machine["processor"]}, {machine["cores"]} cores, '
    f'Python {result["python"]}, torch {result["torch"]}, ONNX Runtime '
    f'{result["onnxruntime"]}, seed {result["seed"]}.{note}'
  )
  lines = []
  for name, case in result['cases'].items():
    worst = max(max(row) for row in case['relative_difference'].values())
    lines.append(
      f'{name}: `{case["exporter"]}`, opset {case["opset"]}; exits: '
      f'{case["exits"]}, whose logits differ by {worst:.1e} of the largest.'
    )
  heads, *rows = exported_rows.rows(result['cases'])
  return [told, '', *lines, '', *_table(heads, rows)]


def cifar10_tiny(results: pathlib.Path) -> list[str]:
  """Returns the tables of what ships of the network of the package.

  Args:
    results: the folder of the results.
  """
  judged, quantized, latency = (
    _read(results, f'cifar10_tiny/{name}.json')
    for name in ('anytime', 'quantized', 'latency')
  )
  if judged is None or quantized is None or latency is None:
    return [f'{_MISSING}.']
  rows = []
  for exit_, found in zip(judged['exits'], quantized['exits'], strict=True):
    forms = [
      found[kind][form] for kind in ('onnx', 'tflite') for form in _FORMS
    ]
    onnx, onnx_int8, _, tflite_int8 = forms
    row = [f'{exit_["exit"]}', f'{exit_["accuracy"]:.2%}']
    for form in (onnx_int8, tflite_int8):
      change = 100 * (form['accuracy'] - exit_['accuracy'])
      row.append(f'{form["accuracy"]:.2%} ({change:+.2f})')
    row += [f'{onnx["weight_bytes"]:,}', f'{onnx_int8["weight_bytes"]:,}']
    row += [f'{form["file_bytes"]:,}' for form in forms]
    rows.append(row)
  heads = (
    *('exit', 'floats', '8 bits, ONNX Runtime', '8 bits, LiteRT'),
    *('bytes of weights', 'in 8 bits', 'ONNX files', 'in 8 bits'),
    *('.tflite, all exits', 'in 8 bits'),
  )
  machine, versions = latency['machine'], latency['versions']
  named = ', '.join(f'{name} {version}' for name, version in versions.items())
  last = judged['exits'][-1]['macs']
  shares = [exit_['macs'] / last for exit_ in judged['exits']]
  times = [['share of the macs', '', '', *(f'{x:.0%}' for x in shares)]]
  for entry in latency['entries']:
    medians = [exit_['median'] for exit_ in entry['exits']]
    times.append(
      [
        milliseconds.runtime_name(entry['runtime']),
        f'{entry["threads"]}',
        f'{entry["batch_size"]}',
        *(f'{t:.2f} ms, {t / medians[-1]:.0%}' for t in medians),
      ]
    )
  return [
    *_table(heads, rows),
    '',
    f'{machine["processor"]}, {machine["cores"]} cores, {named}; medians of '
    'rounds in which all forms take turns, and their share of the last exit:',
    '',
    *_table(
      ('runtime', 'threads', 'batch', *(f'exit {k}' for k in range(len(rows)))),
      times,
    ),
  ]


def options(results: pathlib.Path) -> list[str]:
  """Returns the tables of what the training options bring.

  Args:
    results: the folder of the results.
  """
  lines = []
  for name, network in (
    ('options', 'MSDNet'),
    ('options_searched', 'A searched network'),
  ):
    result = _read(results, f'{name}.json')
    if result is None:
      lines += [f'{network}: {_MISSING}.', '']
      continue
    costs = ', '.join(
      f'{macs / 1e6:.1f} M' for macs in result['records'][0]['macs']
    )
    heads, *rows = training_options.rows(result['records'])
    lines += [
      f'{network}, {result["date"]}, {result["machine"]}: exits at {costs} '
      f'macs, {result["epochs"]} epochs of {result["images"]:,} images, '
      f'{result["holdout"]:,} held out.',
      '',
      *_table(heads, rows),
      '',
    ]
  return lines[:-1]


def ranking(results: pathlib.Path) -> list[str]:
  """Returns the table of how well scores rank genotypes.

  Args:
    results: the folder of the results.
  """
  parts = {
    name: found
    for name in rank.PARTS
    if (found := _read(results, f'ranking/{name}.json')) is not None
  }
  missing = [name for name in rank.PARTS if name not in parts]
  if rank.TRAINED not in parts:
    return [f'{_MISSING}.']
  trained = parts[rank.TRAINED]
  sizes = trained['network']
  mean, better, best = rank.last_exits(trained)
  lines = [
    f'{trained["date"]}, {trained["machine"]}: {len(trained["records"])} '
    f'genotypes, {sizes["layers"]} layers, {sizes["channels"]} channels, '
    f'{sizes["scales"]} scales, seed {trained["seed"]}; each trained for '
    f'{trained["epochs"]} epochs of {trained["images"]:,} images: {mean:.1%} '
    f'at the last exit, {better:.1%} for the better half, {best:.1%} for the '
    'best.',
    '',
  ]
  heads, *rows = rank.rows(parts)
  lines += _table(heads, rows)
  for name in rank.SEARCHES:
    if name in parts:
      mean, better, best = rank.last_exits(parts[name])
      lines += [
        '',
        f'With {rank.SCORES[name]}, after {parts[name]["steps"]:,} steps: '
        f'{mean:.1%} at the last exit, {better:.1%} for the better half, '
        f'{best:.1%} for the best.',
      ]
  if missing:
    lines += ['', f'{", ".join(missing)}: {_MISSING}.']
  return lines


def made_params(results: pathlib.Path) -> list[str]:
  """Returns the table of a start from params that a hypernetwork made.

  Args:
    results: the folder of the results.
  """
  result = _read(results, 'made_params.json')
  if result is None:
    return [f'{_MISSING}.']
  heads, *rows = made.rows(result)
  told = (
    f'`{result["command"]}`, {result["date"]}, {result["machine"]}: means over '
    f'{len(result["records"])} genotypes.'
  )
  return [told, '', *_table(heads, rows)]


def feeding(results: pathlib.Path) -> list[str]:
  """Returns what training from images on disk does.

  Args:
    results: the folder of the results.
  """
  result = _read(results, 'feeding.json') or {}
  lines: list[str] = []
  cached, large = result.get('cached'), result.get('large')
  if cached:
    same = cached['same_params'] and cached['same_metrics']
    lines += [
      f'{cached["date"]}, {cached["machine"]}: {cached["images"]:,} images of '
      f'CIFAR-10, {cached["epochs"]} epochs, {cached["resident_bytes"]:,} '
      f'bytes resident: {cached["speed_over_resident"]:.0%} of the steps per '
      'second with all images on the device (medians of '
      f'{len(cached["runs"]["disk"])} rounds). Params and metrics of all runs, '
      'the one that was killed among them, are '
      f'{"the same to the bit" if same else "NOT the same"}.'
    ]
  if large:
    lines += [
      *[''] * bool(lines),
      f'{large["date"]}, {large["machine"]}: {large["images"]:,} images of '
      f'{large["side"]}x{large["side"]} ({large["image_bytes"] / 1e9:.1f} GB), '
      f'{large["resident_bytes"] / 1e9:.1f} GB resident: an epoch in '
      f'{large["seconds"]:,.0f} s, unpacking included, with at most '
      f'{large["own_bytes"] / 1e9:.2f} GB of memory of its own.',
    ]
  return lines or [f'{_MISSING}.']


TABLES: Mapping[str, Callable[[pathlib.Path], list[str]]] = {
  'cifar10_tiny': cifar10_tiny,
  'converted': converted,
  'early_exit': early_exit,
  'exported': exported,
  'feeding': feeding,
  'gpu_first': gpu_first,
  'gpu_second': gpu_second,
  'made_params': made_params,
  'options': options,
  'ranking': ranking,
}


def filled(text: str, results: pathlib.Path) -> str:
  """Returns a page with its tables written anew, between their marks.

  Args:
    text: the page; a table stands between `<!-- NAME -->` and `<!-- end -->`.
    results: the folder of the results.
  """
  for name, build in TABLES.items():
    mark, end = f'<!-- {name} -->\n', '<!-- end -->'
    before, found, rest = text.partition(mark)
    if not found or end not in rest:
      raise SystemExit(f'there is no {mark.strip()} ... {end} in the page')
    _, _, after = rest.partition(end)
    lines = '\n'.join(build(results))
    text = f'{before}{mark}\n{lines}\n\n{end}{after}'
  return text


def main() -> None:
  """Writes the page, or says whether it is up to date."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--results', default=_HERE / 'results', type=pathlib.Path)
  parser.add_argument('--page', default=_HERE / 'README.md', type=pathlib.Path)
  parser.add_argument('--check', action='store_true')
  args = parser.parse_args()
  old = args.page.read_text(encoding='utf-8')
  new = filled(old, args.results)
  if args.check:
    sys.exit(int(old != new))
  files.write_text(args.page, new)


if __name__ == '__main__':
  main()
