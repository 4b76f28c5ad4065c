"""The benchmarks run, take turns with a reference, and say what they found."""

import importlib
import json
import os
import re
import stat
import subprocess
import sys

import jax
import numpy as np
import onnx
from onnx import numpy_helper
import onnx.utils
import pytest
import scipy.stats

import ms_ranas_jax
from ms_ranas_jax import convert
from ms_ranas_jax.baselines import darts_weights
from ms_ranas_jax.baselines import msdnet_weights
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.export import onnx_file
from ms_ranas_jax.export import runners
from ms_ranas_jax.runtime import interruption
from ms_ranas_jax.search import hypernetwork_file
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib

_TINY = ('--layers=2', '--channels=2', '--image=8', '--repeats=3', '--steps=1')


@pytest.fixture(name='fake_reference')
def _fake_reference(repo_root, tmp_path):
  """An interpreter that, whatever it is to run, serves a step of 100 s."""
  turns = tmp_path / 'turns'
  script = tmp_path / 'serve.py'
  script.write_text(
    f'import sys\nsys.path.insert(0, {str(repo_root / "benchmarks")!r})\n'
    'import protocol\n'
    'def run(steps):\n'
    f'  with open({str(turns)!r}, "a") as f: f.write(f"{{steps}} ")\n'
    '  print("noise that a checkout prints")\n'
    '  return 100.0\n'
    'protocol.serve(lambda: (run, {"compile_s": None, "version": "fake"}))\n'
  )
  interpreter = tmp_path / 'python'
  interpreter.write_text(
    f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n'
    f'exec {sys.executable} {script}\n'
  )
  interpreter.chmod(interpreter.stat().st_mode | stat.S_IXUSR)
  return interpreter, turns


def _run(repo_root, name, *args):
  cache = os.environ.get('JAX_COMPILATION_CACHE_DIR') or str(
    repo_root / '.cache/jax'
  )
  return _run_script(repo_root, name, f'--cache-dir={cache}', *_TINY, *args)


def _run_script(repo_root, name, *args):
  return subprocess.run(
    [sys.executable, str(repo_root / 'benchmarks' / name), *args],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )


def test_processes_run_as_the_launchers_run_them(repo_root, monkeypatch):
  monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
  comparison = importlib.import_module('comparison')
  tune = 'source "$0"; tune_environment; env'
  end = subprocess.run(
    ['bash', '-c', tune, str(repo_root / 'launch/env.sh')],
    capture_output=True,
    text=True,
    check=True,
    env={'PATH': os.environ['PATH']},
  )
  found = dict(line.split('=', 1) for line in end.stdout.splitlines())
  launched = comparison.LAUNCHED
  assert {name: found.get(name) for name in launched} == launched


@pytest.mark.slow
def test_search_step_takes_turns_with_a_reference(
  repo_root, fake_reference, tmp_path
):
  interpreter, turns = fake_reference
  out = tmp_path / 'result.json'
  result = _run(
    repo_root,
    'search_step.py',
    '--nodes=1',
    '--batch=2',
    f'--json={out}',
    f'--reference={tmp_path}',
    f'--reference-python={interpreter}',
  )
  assert result.returncode == 0, result.stderr
  # One to prepare, then three turns of a step that is not counted and one.
  assert turns.read_text().split() == ['1'] * 7
  found = json.loads(out.read_text())
  ours, reference = found['ours'], found['reference']
  assert 0 < ours['min_s'] <= ours['median_s'] <= ours['max_s'] < 100
  assert ours['compile_s'] > 0
  assert ours['peak_bytes'] > 10**7
  assert reference['median_s'] == 100.0
  assert found['ratio'] == pytest.approx(100.0 / ours['median_s'])
  assert f'reference / ours: {found["ratio"]:.2f}' in result.stdout


@pytest.mark.slow
def test_inference_times_every_exit(repo_root, tmp_path):
  out = tmp_path / 'result.json'
  result = _run(
    repo_root,
    'inference.py',
    '--layers=3',
    '--exits=all_but_first',
    '--batch=1',
    f'--json={out}',
  )
  assert result.returncode == 0, result.stderr
  found = json.loads(out.read_text())
  assert [r['case']['exit'] for r in found] == [-1, 0]
  assert all(r['ours']['median_s'] > 0 for r in found)
  assert all(r['ratio'] is None for r in found)


def test_train_step(repo_root):
  result = _run(repo_root, 'train_step.py', '--batch=2')
  assert result.returncode == 0, result.stderr
  assert 'ours' in result.stdout


def test_msdnet_takes_turns_with_its_own_reference(
  repo_root, fake_reference, tmp_path
):
  interpreter, turns = fake_reference
  out = tmp_path / 'result.json'
  result = _run(
    repo_root,
    'train_step.py',
    *('--family=msdnet', '--blocks=1', '--base=1', '--scales=1', '--batch=2'),
    f'--json={out}',
    f'--reference={tmp_path}',
    f'--reference-python={interpreter}',
  )
  assert result.returncode == 0, result.stderr
  assert turns.read_text().split() == ['1'] * 7
  found = json.loads(out.read_text())
  assert (found['case']['family'], found['case']['blocks']) == ('msdnet', 1)
  assert 'reference_msdnet.py' in (tmp_path / 'arguments').read_text()
  assert 0 < found['ours']['median_s'] < 100


@pytest.mark.slow
def test_seeds_take_turns(repo_root, tmp_path):
  out = tmp_path / 'result.json'
  result = _run(
    repo_root, 'seeds.py', '--seeds=2', '--batch', '2', f'--json={out}'
  )
  assert result.returncode == 0, result.stderr
  (row,) = json.loads(out.read_text())
  for way in ('vectorised', 'loop'):
    ratios = [
      a / b
      for a, b in zip(row[way]['turns_s'], row['one']['turns_s'], strict=True)
    ]
    assert row['ratios'][way] == pytest.approx(sorted(ratios)[1])
    assert f'{way} {row["ratios"][way]:.1f} times' in result.stdout


def test_a_reference_is_refused_where_it_has_no_such_network(repo_root):
  result = _run(
    repo_root, 'search_step.py', '--scales=2', '--reference=anything'
  )
  assert result.returncode == 2
  assert 'one scale' in result.stderr


@pytest.mark.slow
def test_collapse_searches_with_each_guard(repo_root):
  result = _run_script(
    repo_root,
    'collapse.py',
    '--layers=3',
    '--epochs=10',
    '--guard=none',
    '--guard=max_skips',
  )
  assert result.returncode == 0, result.stderr
  *_, plain, capped = (
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in result.stdout.splitlines()
  )
  assert (plain[0], capped[0]) == ('none', 'max_skips')
  # The same search; only the genotype keeps to the cap.
  assert plain[1:3] == capped[1:3]
  for before, after in zip(plain[3:5], capped[3:5], strict=True):
    assert int(after) == min(int(before), 1)


def _run_experiment(repo_root, name, workdir, *args):
  result = _run_script(
    repo_root,
    name,
    '--dataset=digits',
    '--images=300',
    f'--workdir={workdir}',
    '--layers=2',
    '--channels=2',
    '--search-epochs=1',
    '--train-epochs=1',
    *args,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


@pytest.mark.slow
def test_targets_says_what_each_search_found(repo_root, tmp_path):
  args = ('--targets', '15e3', '--seeds', '0')
  text = _run_experiment(repo_root, 'targets.py', tmp_path, *args)
  rows = [line.split(' | ') for line in text.splitlines()]
  (row,) = (row for row in rows if row[0] == '| 15,000')
  found = float(row[2].replace(',', ''))
  assert abs(found / 15e3 - 1) <= 0.05
  assert row[3] == f'{found / 15e3 - 1:+.1%}'


@pytest.mark.slow
def test_ranking_compares_scores_with_trainings(repo_root, tmp_path):
  results = tmp_path / 'results'
  args = (
    *('--scales=1', '--genotypes=2', '--seconds=0.1', '--judging-images=64'),
    *(f'--results={results}', '--parts', 'trained', 'random', 'sgd'),
  )
  text = _run_experiment(repo_root, 'ranking.py', tmp_path, *args)
  table = [line.strip('| ').split(' | ') for line in text.splitlines()[-13:]]
  assert [row[0] for row in table[1:]] == [
    *['shared params of random search'] * 4,
    *['few steps of SGD'] * 4,
    *['few macs up to the first exit, and nothing else'] * 4,
  ]
  assert [row[1] for row in table[1::2]] == ['area', 'last exit'] * 3
  files = {path.stem: path.read_text() for path in results.iterdir()}
  parts = {name: json.loads(content) for name, content in files.items()}
  assert parts.keys() == {'trained', 'random', 'sgd'}
  for part in parts.values():
    assert len(part['records']) == len(part['genotypes']) == 2
    assert part['genotypes'] == parts['trained']['genotypes']
    for record, other in zip(
      part['records'], parts['trained']['records'], strict=True
    ):
      assert record['macs'] == other['macs']
      assert len(record['accuracy']) == len(record['macs'])
  assert parts['trained']['steps'] == 4  # of 64 images, 300 in all
  # Nothing is run again.
  again = _run_experiment(repo_root, 'ranking.py', tmp_path / 'new', *args)
  assert again.splitlines() == text.splitlines()[-13:]
  assert {p.stem: p.read_text() for p in results.iterdir()} == files


@pytest.mark.slow
def test_the_tiny_network_is_trained_beside_resnet8(repo_root, tmp_path):
  out, work = tmp_path / 'result.json', tmp_path / 'work'
  args = (
    *('--dataset=digits', '--images=120', '--holdout=20', '--epochs=1'),
    *('--seeds=0', '--cases', 'tiny', 'resnet8'),
    f'--genotype={repo_root}/benchmarks/searched_cell.json',
    *(f'--json={out}', f'--workdir={work}'),
  )
  result = _run_script(repo_root, 'tiny.py', *args)
  assert result.returncode == 0, result.stderr
  tiny, resnet8 = json.loads(out.read_text())['records']
  assert (tiny['case'], resnet8['case']) == ('tiny', 'resnet8')
  assert (len(tiny['test']), len(resnet8['test'])) == (3, 1)
  rows = [line for line in result.stdout.splitlines() if line[:2] == '| ']
  assert [row.split(' | ')[0] for row in rows[1:]] == (
    ['| tiny'] * 3 + ['| resnet8']
  )
  # Nothing is run again, and what is unknown is refused.
  again = _run_script(repo_root, 'tiny.py', *args, f'--workdir={tmp_path}/new')
  assert again.stdout.splitlines() == rows
  unknown = _run_script(repo_root, 'tiny.py', *args, '--cases', 'tinier')
  assert unknown.returncode == 1
  assert unknown.stderr.startswith('--cases tinier: give some of tiny, resnet8')


@pytest.mark.slow
def test_made_params_are_trained_beside_random_ones(repo_root, tmp_path):
  primitives = {
    name: ms_ranas_jax.PRIMITIVES[name]
    for name in ('none', 'skip_connect', 'sep_conv_3x3')
  }
  spec = ms_ranas_jax.NetworkSpec(
    channels=2, layers=2, nodes=1, image_shape=(8, 8, 1)
  )
  hypernetwork = ms_ranas_jax.Hypernetwork(spec, primitives, rounds=1, width=4)
  params = ms_ranas_jax.init_hypernetwork(hypernetwork, jax.random.key(0))
  path = tmp_path / 'hypernetwork.safetensors'
  hypernetwork_file.save(str(path), hypernetwork, params)
  out = tmp_path / 'result.json'
  result = _run_script(
    repo_root,
    'made_params.py',
    *(f'--search={path}', '--dataset=digits', '--genotypes=1', '--batch=32'),
    *('--marks', '0', '2', f'--json={out}'),
  )
  assert result.returncode == 0, result.stderr
  (record,) = json.loads(out.read_text())['records']
  for start in 'made', 'random':
    first, last = record[start]
    assert (first['step'], first['loss'], last['step']) == (0, None, 2)
    assert last['loss'] > 0
    assert 0 <= last['accuracy'][-1] <= 1
  # The same batches, other params.
  assert record['made'][1]['loss'] != record['random'][1]['loss']
  assert result.stdout.splitlines()[-1].startswith('| 2 | ')


def test_an_experiment_refuses_bad_input_in_a_sentence(repo_root, tmp_path):
  result = _run_script(
    repo_root,
    'targets.py',
    '--dataset=digits',
    '--targets=1',
    f'--workdir={tmp_path}',
  )
  assert result.returncode == 1
  assert 'search.cost.target = 1:' in result.stderr
  assert 'Traceback' not in result.stderr


def _records(case, seeds, held_out, test):
  return [
    {'case': case, 'seed': seed, 'held_out': [h - 0.1, h + 0.1], 'test': [0, t]}
    for seed, h, t in zip(seeds, held_out, test, strict=True)
  ]


def test_options_are_compared_with_the_plain_training_of_their_seed(
  repo_root, monkeypatch
):
  monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
  options = importlib.import_module('options')
  records = [
    *_records('plain', (0, 1), (0.5, 0.6), (0.4, 0.6)),
    *_records('ema', (1, 0), (0.61, 0.52), (0.6, 0.44)),
    *_records('mixup', (1, 2), (0.7, 0.9), (0.5, 0.9)),
  ]
  np.testing.assert_allclose(
    options.gains(records, 'ema', 'held_out'), [0.01, 0.02]
  )
  # A seed that was not trained plainly is not compared.
  np.testing.assert_allclose(options.gains(records, 'mixup', 'test'), [-0.05])
  assert options.rows(records)[1:] == [
    ['plain', '2', '–', '–', '50.00%'],
    ['mixup', '2', '+10.00', '-5.00', '70.00%'],
    ['ema', '2', '+1.50 ± 0.71', '+1.00 ± 1.41', '52.00%'],
  ]
  both = options.changes('boosting+equilibrium')
  assert both == {
    'train.network.boosting': 0.5,
    'train.gradient_equilibrium': True,
  }
  with pytest.raises(UsageError, match=r'two of them set train\.schedule'):
    monkeypatch.setitem(options.OPTIONS, 'other', {'schedule': 'step'})
    options.changes('one_cycle+other')
  with pytest.raises(UsageError, match="there is no 'magic', but plain, "):
    options.changes('ema+magic')


@pytest.mark.slow
@pytest.mark.parametrize(
  ('network', 'cases'),
  [('_MSDNET', ['plain', 'trunk+boosting']), ('_GRID', ['plain'])],
)
def test_options_are_trained_once(
  network, cases, repo_root, tmp_path, monkeypatch, capsys
):
  monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
  options = importlib.import_module('options')
  small = {'channels': 4, 'layers': 2, 'scales': 2, 'blocks': 2, 'base': 1}
  sizes = getattr(options, network)
  small = {f'network.{name}': value for name, value in small.items()}
  small = {name: small.get(name, value) for name, value in sizes.items()}
  monkeypatch.setattr(options, network, small)
  path = tmp_path / 'options.json'
  flags = ['options.py', '--dataset=digits', '--images=64', '--holdout=20']
  flags += ['--train-epochs=1', '--seeds', '0', f'--json={path}']
  monkeypatch.setattr(sys, 'argv', [*flags, f'--workdir={tmp_path}/runs'])
  monkeypatch.setitem(options.OPTIONS, 'trunk', {'trunk_epochs': 0.5})
  sys.argv += ['--cases', *cases]
  if network == '_GRID':
    sys.argv += [f'--genotype={repo_root}/benchmarks/searched_cell.json']
  options.main(interruption.Interruption())
  records = json.loads(path.read_text())['records']
  assert [r['case'] for r in records] == cases
  for record in records:
    for images in 'held_out', 'test':
      assert len(record[images]) == len(record['macs'])
      assert 0 <= min(record[images])
    assert record['macs'] == records[0]['macs']
  monkeypatch.setattr(options, 'run_case', None)
  options.main(interruption.Interruption())
  sys.argv[sys.argv.index('--train-epochs=1')] = '--train-epochs=2'
  with pytest.raises(UsageError, match='is of epochs = 1, and not 2; have the'):
    options.main(interruption.Interruption())
  assert json.loads(path.read_text())['records'] == records
  assert '| plain | 1 | – | – | ' in capsys.readouterr().out


@pytest.fixture(name='ranking', scope='module')
def _ranking(repo_root):
  folder = str(repo_root / 'benchmarks')
  sys.path.insert(0, folder)
  yield importlib.import_module('ranking')
  sys.path.remove(folder)


def _part(areas, macs=None, **more):
  """A file of genotypes of one exit: its accuracy is the area where it is free.

  Costs may be given.
  """
  costs = [0] * len(areas) if macs is None else list(macs)
  records = [
    {'accuracy': [float(area)], 'macs': [cost]}
    for area, cost in zip(areas, costs, strict=True)
  ]
  budgets = {'budget_range': [0.0, 1.0], 'chance': 0.1}
  return {'records': records, 'step_seconds': 7.2, **budgets, **more}


def test_ranking_tells_coefficients_of_all_and_of_the_better_half(ranking):
  rng = np.random.default_rng(0)
  truth, scores = rng.uniform(size=(2, 11))
  scores += truth
  parts = {'trained': _part(truth), 'sgd': _part(scores)}
  heads, *rows = ranking.rows(parts)
  assert heads[3:6] == ['Pearson', 'Spearman', 'Kendall']
  # One exit at no cost: the area is its accuracy, and cost says nothing.
  rows, cheap = rows[:4], rows[4:]
  assert len(cheap) == 4 and {row[3].split()[0] for row in cheap} == {'nan'}
  assert [row[:3] for row in rows] == [
    ['few steps of SGD', measure, which]
    for measure in ('area', 'last exit')
    for which in ('all 11', 'better 6')
  ]
  best = np.argsort(truth)[-6:]
  for row, which in zip(rows, (slice(None), best) * 2, strict=True):
    assert row[-1] == '7'
    for cell, statistic in zip(
      row[3:6],
      (scipy.stats.pearsonr, scipy.stats.spearmanr, scipy.stats.kendalltau),
      strict=True,
    ):
      expected = statistic(truth[which], scores[which]).statistic
      assert float(cell.split()[0]) == pytest.approx(expected, abs=0.0051)
  # A cheap genotype has a larger area of the same accuracy.
  macs = np.linspace(0.1, 0.9, 11)
  parts = {'trained': _part(np.full(11, 0.5), macs)}
  _, *cheap = ranking.rows(parts)
  assert [row[4].split()[0] for row in cheap[:2]] == ['1.00', '1.00']
  assert cheap[0][0] == 'few macs up to the first exit, and nothing else'
  assert cheap[0][-1] == '0'
  # What is still being trained is compared as far as it is.
  some = {'trained': _part(truth[:7]), 'sgd': _part(scores)}
  assert [row[2] for row in ranking.rows(some)[1:3]] == ['all 7', 'better 4']
  # Without trainings there is nothing to compare with.
  assert len(ranking.rows({'sgd': _part(scores)})) == 1


def test_rank_correlation_of_what_is_all_the_same(ranking):
  for name in ranking.COEFFICIENTS:
    assert np.isnan(ranking.correlation(name, [1, 1, 1], [1, 2, 3]))
    assert ranking.correlation(name, [1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_interval_of_a_rank_correlation(ranking):
  rng = np.random.default_rng(1)
  x = rng.normal(size=200)
  y = x + rng.normal(size=200)
  found = ranking.correlation('Spearman', x, y)
  low, high = ranking.interval('Spearman', x, y)
  # Fisher's z, with the variance of Bonett and Wright (2000).
  slack = 1.96 * np.sqrt((1 + found**2 / 2) / 197)
  expected = np.tanh(np.arctanh(found) + np.array([-slack, slack]))
  np.testing.assert_allclose([low, high], expected, atol=0.03)


@pytest.mark.slow
def test_early_exits_are_timed_beside_the_whole_network(repo_root, tmp_path):
  edges = (('skip_connect', 0), ('max_pool_3x3', 1))
  network = ms_ranas_jax.derived_network(
    ms_ranas_jax.NetworkSpec(
      channels=4, layers=3, nodes=1, image_shape=(8, 8, 1)
    ),
    ms_ranas_jax.Genotype(edges, (2,), edges, (2,)),
  )
  variables = ms_ranas_jax.init_variables(network, jax.random.key(0))
  ms_ranas_jax.build_model(network, variables, (0.5,), (0.5,)).save(
    tmp_path / 'model'
  )
  result = _run_script(
    repo_root,
    'early_exit.py',
    f'--model={tmp_path / "model"}',
    '--batch=6',
    '--repeats=3',
    f'--json={tmp_path / "result.json"}',
  )
  assert result.returncode == 0, result.stderr
  found = json.loads((tmp_path / 'result.json').read_text())
  times = found['batches'][0]['times']
  assert list(times) == [
    'whole network, one program',
    'one step after another',
    'exit 0',
    'exit 1',
    'half leave at exit 0',
  ]
  for row in times.values():
    assert 0 < row['min_ms'] <= row['median_ms'] <= row['max_ms']
  assert times['exit 1']['share_of_macs'] == 1
  assert times['half leave at exit 0']['share_that_left'] == 0.5
  assert len(found['start_seconds']) == 3
  assert 'half leave at exit 0: ' in result.stdout


def _on_gpu(repo_root, out, half, only, *args, **environment):
  """Runs a half in a tiny size on the CPU."""
  done = subprocess.run(
    [
      str(repo_root / 'benchmarks/on_gpu.sh'),
      half,
      '--tiny',
      f'--only={only}',
      *args,
    ],
    capture_output=True,
    text=True,
    check=False,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'PYTHON': sys.executable,
      'OUT': str(out),
      **environment,
    },
  )
  assert done.returncode == 0, done.stderr
  return json.loads((out / f'gpu_{half}_part.json').read_text()), done.stdout


@pytest.mark.slow
def test_the_first_half_on_a_gpu_is_tried_here(repo_root, tmp_path):
  only = '(inference, paper|train step, MSDNet), float32, batch 64$'
  result, said = _on_gpu(repo_root, tmp_path, 'first', only)
  assert result['platform'] == 'cpu' and result['checks'] == []
  assert [job['name'] for job in result['jobs']] == [
    'train step, MSDNet, float32, batch 64',
    'inference, paper, float32, batch 64',
  ]
  for job in result['jobs']:
    assert job['status'] == 'measured'
    assert 0 < job['min_s'] <= job['median_s'] and job['ready_s'] > 0
    assert job['case']['batch'] == 2 and job['case']['image'] == 8
  assert ' ms\n' in said


@pytest.mark.slow
def test_the_second_half_takes_references_and_names_what_it_lacks(
  repo_root, fake_reference, tmp_path
):
  interpreter, _ = fake_reference
  result, said = _on_gpu(
    repo_root,
    tmp_path,
    'second',
    'inference',
    f'--reference-python={interpreter}',
    MSDNET=str(tmp_path),
  )
  found = {(j['name'][11:17], j['variant']): j for j in result['jobs']}
  assert len(found) == len(result['jobs']) == 8
  for (name, variant), job in found.items():
    if variant == 'ours':
      assert job['status'] == 'measured' and job['median_s'] < 50
    elif name == 'MSDNet':
      assert job['median_s'] == 100.0
    else:
      assert job['status'] == 'skipped'
      assert job['reason'] == 'no checkout was named by --darts'
  assert 'not measured: 3: inference, DARTS_V2' in said


@pytest.fixture(name='tables', scope='module')
def _tables(repo_root):
  folder = str(repo_root / 'benchmarks')
  sys.path.insert(0, folder)
  yield importlib.import_module('tables')
  sys.path.remove(folder)


def test_the_tables_are_those_of_the_results(tables, repo_root):
  page = (repo_root / 'benchmarks/README.md').read_text(encoding='utf-8')
  assert tables.filled(page, repo_root / 'benchmarks/results') == page


def test_a_row_is_that_of_its_result_or_not_yet_measured(tables, tmp_path):
  name = 'train step, MSDNet, float32, batch 64'
  job = {'name': name, 'variant': 'ours', 'status': 'measured'}
  job |= {'median_s': 0.002, 'min_s': 0.001, 'max_s': 0.0035}
  job |= {'peak_bytes': 12e8, 'compile_s': 33.25, 'ready_s': 40.0}
  lost = {'name': 'inference, paper, float32, batch 64', 'variant': 'ours'}
  options = {'date': '2026-01-02', 'machine': '2 cores', 'holdout': 20}
  records = _records('plain', (0,), (0.5,), (0.4,))
  records += _records('ema', (0,), (0.52,), (0.44,))
  options |= {'records': [r | {'macs': [2.5e5, 1e6]} for r in records]}
  (tmp_path / 'options.json').write_text(
    json.dumps(options | {'epochs': 3, 'images': 12000})
  )
  result = {
    'command': 'benchmarks/on_gpu.sh first',
    'date': '2026-01-02',
    'device': 'NVIDIA X',
    'cores': 16,
    'jax': '1.2',
    'checks': [{'name': 'equality', 'status': 'passed', 'said': '5 passed'}],
    'jobs': [job, lost | {'status': 'skipped', 'reason': 'no time was left'}],
  }
  (tmp_path / 'gpu_first.json').write_text(json.dumps(result))
  marks = '<!-- cifar10_tiny -->\nold\n<!-- end -->\n'
  marks += '<!-- converted -->\nold\n<!-- end -->\n'
  marks += '<!-- early_exit -->\nold\n<!-- end -->\n'
  marks += '<!-- exported -->\nold\n<!-- end -->\n'
  marks += '<!-- feeding -->\nold\n<!-- end -->\n'
  marks += '<!-- gpu_first -->\nold\n<!-- end -->\n'
  marks += '<!-- gpu_second -->\nold\n<!-- end -->\n'
  marks += '<!-- made_params -->\nold\n<!-- end -->\n'
  marks += '<!-- options -->\nold\n<!-- end -->\n'
  marks += '<!-- ranking -->\nold\n<!-- end -->\nrest\n'
  lines = tables.filled(marks, tmp_path).splitlines()
  assert f'| {name} | 2.00 ms (1.00 to 3.50) | 33.2 s | 1.20 GB |' in lines
  why = 'not yet measured (skipped: no time was left)'
  assert f'| {lost["name"]} | {why} | – | – |' in lines
  assert '`benchmarks/on_gpu.sh second`: not yet measured.' in lines
  assert any('NVIDIA X, 16 processor cores, jax 1.2. Equal' in x for x in lines)
  assert '| ema | 1 | +2.00 | +2.00 | 44.00% |' in lines
  told = 'exits at 0.2 M, 1.0 M macs, 3 epochs of 12,000 images, 20 held out.'
  assert f'MSDNet, 2026-01-02, 2 cores: {told}' in lines
  assert 'A searched network: not yet measured.' in lines
  assert 'old' not in lines and lines[-1] == 'rest'


def test_converted_networks_are_compared(
  repo_root, tmp_path, monkeypatch, draw_state, capsys
):
  """The reference is a script that answers what the public code once did."""
  monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
  converted = importlib.import_module('converted')
  spec = grid.NetworkSpec(2, 3, 3, exits='last', image_shape=(8, 8, 3))
  network = network_lib.derived_network(spec, converted.TINY_CELLS)
  state = draw_state(network, darts_weights.places(network))
  np.savez(tmp_path / 'weights.npz', **state, **{'auxiliary_head.x': [0.0]})
  recorded = json.loads(
    (repo_root / 'benchmarks/results/converted.json').read_text()
  )['cases']['tiny DARTS']
  np.savez(tmp_path / 'logits.npz', logits=np.float32(recorded['logits']))
  python = tmp_path / 'python'
  python.write_text(
    f'#!/bin/sh\ncp {tmp_path}/*.npz "$3"\n'
    f'echo "$4" > {tmp_path}/told\necho 2.0\n'
  )
  python.chmod(python.stat().st_mode | stat.S_IXUSR)
  flags = ['--darts=somewhere', f'--reference-python={python}', '--only=tiny']
  path = tmp_path / 'result.json'
  assert converted.main([*flags, f'--json={path}']) == 0
  assert 'tiny DARTS: ' in capsys.readouterr().out
  result = json.loads(path.read_text())
  assert list(result['cases']) == ['tiny DARTS'] and result['torch'] == '2.0'
  case = result['cases']['tiny DARTS']
  assert case['tensors'] == len(state) + 1 and case['not_used'] == 1
  assert case['logits'] == recorded['logits'] and case['same_classes']
  told = json.loads((tmp_path / 'told').read_text())
  assert told['genotype']['reduce_concat'] == [3, 4] and told['auxiliary']
  # More than that is a failure.
  assert converted.main([*flags, '--tolerance=1e-12']) == 1


def test_exports_take_turns_with_that_of_torch(
  repo_root, tmp_path, monkeypatch, draw_state, capsys
):
  """The file of torch is one of ours, and later one with another answer."""
  monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
  exported = importlib.import_module('exported')
  tables = importlib.import_module('tables')
  name = 'tiny MSDNet'
  monkeypatch.setattr(exported, 'CASES', (name,))
  converted = exported.converted
  sizes = convert.SOURCES['msdnet'].sizes | converted.CASES[name]['sizes']
  network = convert.SOURCES['msdnet'].build(sizes, (16, 16, 3), 10)
  state = draw_state(network, msdnet_weights.places(network.plan))
  np.savez(tmp_path / 'weights.npz', **state)
  facts = converted.facts_of(name, 0, 2)
  model, _ = converted.converted_model(name, str(tmp_path), 16)
  (ours,) = exported.our_files(model, facts)['whole']
  # Torch's takes normalised floats, and gives an output per exit.
  whole = onnx.shape_inference.infer_shapes(onnx.load_from_string(ours))
  rows = [n.input[0] for n in whole.graph.node if n.op_type == 'Unsqueeze']
  theirs = onnx.utils.Extractor(whole).extract_model(
    [onnx_file.NORMALIZED], rows
  )
  images = exported.drawn.images(2, 16)
  found = runners.session(theirs.SerializeToString()).run(
    None, {onnx_file.NORMALIZED: exported.normalized(images, facts)}
  )
  expected = model.compiled_steps.logits(images, 2)
  assert len(found) == 3
  assert max(exported.differences(found, expected)) <= 1e-5
  (tmp_path / 'torch.onnx').write_bytes(theirs.SerializeToString())
  python = tmp_path / 'python'
  facts_said = '{"torch": "2.0", "exporter": "dynamo=True", "why": ""}'
  python.write_text(
    f'#!/bin/sh\ncp {tmp_path}/weights.npz {tmp_path}/torch.onnx "$3"\n'
    f"echo warnings; echo '{facts_said}'\n"
  )
  python.chmod(python.stat().st_mode | stat.S_IXUSR)
  path = tmp_path / 'exported.json'
  flags = ['--msdnet=somewhere', f'--reference-python={python}', '--threads=1']
  flags += ['--batch', '1', '2', '--seconds=0', f'--json={path}', '--note=Hm.']
  assert exported.main([*flags, '--profile']) == 0
  said = capsys.readouterr().out
  assert 'tiny MSDNet: dynamo=True, opset 17; ' in said
  # The dearest kind is first, which other work on the machine may change.
  (kinds,) = re.findall('1 threads, batch 2, steps, (.+)', said)
  assert re.search(r'\bConv \d', kinds)
  result = json.loads(path.read_text())
  case = result['cases'][name]
  assert case['exits'] == 3 and result['torch'] == '2.0'
  for entry in case['entries']:
    assert entry['rounds'] == 11
    times, ratio = entry['milliseconds'], entry['ratio']['whole']
    assert list(times) == ['torch', 'whole', 'steps']
    for row in [*times.values(), ratio]:
      assert 0 < row['low'] <= row['median'] <= row['high']
    assert ratio['medians'] == pytest.approx(
      times['whole']['median'] / times['torch']['median']
    )
  lines = tables.exported(tmp_path)
  assert lines[0].endswith('seed 0. Hm.')
  assert lines[-2].startswith('| tiny MSDNet | 1 | 1 | ')
  # Another bias of one exit is seen.
  changed = onnx.load_from_string(theirs.SerializeToString())
  (last,) = (node for node in changed.graph.node if rows[-1] in node.output)
  (bias,) = (
    tensor
    for tensor in changed.graph.initializer
    if tensor.name == last.input[2]
  )
  bias.CopyFrom(numpy_helper.from_array(np.zeros(10, np.float32), bias.name))
  (tmp_path / 'torch.onnx').write_bytes(changed.SerializeToString())
  assert exported.main(flags) == 1


def test_a_worker_that_does_not_answer_is_given_up(repo_root, monkeypatch):
  monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
  comparison = importlib.import_module('comparison')
  slow = comparison.Worker([sys.executable, '-c', 'input()'], quiet=True)
  with pytest.raises(TimeoutError, match='no answer'):
    slow.wait_ready(0.2)
  slow.kill()
  dead = comparison.Worker([sys.executable, '-c', '1 / 0'], quiet=True)
  with pytest.raises(ChildProcessError, match='ended with 1'):
    dead.wait_ready(60)
  assert dead.kill() == 'ZeroDivisionError: division by zero'
