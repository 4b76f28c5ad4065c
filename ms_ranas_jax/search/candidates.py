"""Choosing among genotypes by the area under their accuracy-cost curves.

Candidates are the genotypes of the last epochs, of all seeds, and random ones.
Each is put into the search network as one-hot weights and judged with the
params that all of them share, on the images that trained the alphas: with the
accuracy of every exit over what that exit costs once the network is built, the
score is the mean accuracy under a budget drawn evenly from a range, the
normalised area under the step curve (`curves.step_area`). BNs use the
statistics of the batch, as in the search.

With several seeds each candidate is judged with the params of all of them, on
each one's validation half, and its score is the mean: params favour what their
own alphas preferred, and only so do all candidates meet the same judges.

Exits pair with costs so: where the networks of `config.train.network` and
`config.search.network` have as many exits, the accuracy of exit k stands over
the macs of exit k of the former, derived; else over those of the latter,
derived. Budgets are in these macs. Where the width to train is left open, they
are of a nominal one, see `grid.network_spec`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import json
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.anytime import curves
from ms_ranas_jax.costs import cost
from ms_ranas_jax.costs import linear_cost
from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import feeding
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.runtime import processes
from ms_ranas_jax.runtime import progress
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import constrained
from ms_ranas_jax.search import methods
from ms_ranas_jax.search import options
from ms_ranas_jax.search import random_search
from ms_ranas_jax.search.cost_term import CostTerm
from ms_ranas_jax.search.short_training import ShortTraining
from ms_ranas_jax.sections import AREA
from ms_ranas_jax.sections import SearchConfig
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.training import augmentation
from ms_ranas_jax.training import losses

CANDIDATES_FILE = 'search/candidates.json'

# (state of a search, one-hot weights, images to score) -> accuracy and
# cross-entropy of each exit.
Score = Callable[
  [Any, alphas_lib.Alphas, np.ndarray],
  tuple[np.ndarray, np.ndarray],
]


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A genotype and where it came from.

  Attributes:
    genotype: the genotype.
    sources: {'seed', 'epoch'} of a derivation, the epochs counted as done, or
      {'random'}, the number of a draw; all that gave this genotype.
  """

  genotype: Genotype
  sources: tuple[Mapping[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Judged:
  """What all candidates share.

  Attributes:
    spec: sizes of the network whose exits' macs count.
    network: 'train' or 'search', the section that these sizes are of.
    budget_range: the least and the largest budget, macs.
    chance: accuracy below the first exit.
    cost_term: says what may be chosen.
    primitives: name -> operation, the choices on every edge.
    search: `config.search`.
  """

  spec: grid.NetworkSpec
  network: str
  budget_range: tuple[float, float]
  chance: float
  cost_term: CostTerm
  primitives: ops.Primitives
  search: SearchConfig

  def one_hot_weights(self, genotype: Genotype) -> network_lib.Weights:
    """Returns the weights that make the search network that of a genotype."""
    return options.one_hot_weights(self.search, genotype, self.primitives)

  def macs(self, genotype: Genotype) -> list[int]:
    """Returns the macs of each exit of the network of a genotype."""
    network = network_lib.derived_network(self.spec, genotype, self.primitives)
    return [exit_.macs for exit_ in cost.network_cost(network).exits]

  def score(self, macs: Sequence[int], accuracies: Sequence[float]) -> float:
    """Returns the normalised area under the step curve."""
    return curves.step_area(macs, accuracies, *self.budget_range, self.chance)

  def is_allowed(self, genotype: Genotype) -> bool:
    """Returns whether a genotype keeps to the cap on skips and the target."""
    cap = self.cost_term.max_skips
    skips = constrained.count_skips(genotype, self.primitives)
    if cap is not None and max(skips.values()) > cap:
      return False
    if not self.cost_term.config.target:
      return True
    low, high = self.cost_term.limits
    return low <= self.cost_term.cost(genotype) <= high


def is_by_area(search: SearchConfig) -> bool:
  """Returns whether a search chooses by area, as those without alphas do.

  Args:
    search: `config.search`.
  """
  has_alphas = methods.named(search.method).has_alphas
  return search.select == AREA or not has_alphas


def check_selection(search: SearchConfig, total: int) -> None:
  """Refuses a choice of candidates that cannot be made.

  Args:
    search: `config.search`.
    total: how many training images are split in two halves.

  Raises:
    UsageError: names the field.
  """
  section = search.candidates
  if not methods.named(search.method).has_alphas:
    if not section.random:
      raise UsageError(
        f'search.candidates.random = 0, but search.method = {search.method!r} '
        'has no other candidates; give how many to draw.'
      )
    if search.cost.weight:
      raise UsageError(
        f'search.cost.weight = {search.cost.weight:g}, but search.method = '
        f'{search.method!r} has no alphas that a cost could pull; set it to 0, '
        'or set search.cost.target.'
      )
  if not is_by_area(search):
    for field in dataclasses.fields(section):
      value = getattr(section, field.name)
      if value != field.default:
        raise UsageError(
          f'config.search.candidates.{field.name} = {value!r} does nothing '
          f"while config.search.select = {search.select!r}; set it to 'area', "
          f'or leave it at {field.default!r}.'
        )
    return
  if not section.last_epochs and not section.random:
    raise UsageError(
      'search.candidates.last_epochs and search.candidates.random are both 0: '
      'there is nothing to choose among; set one of them.'
    )
  half = total - int(search.train_fraction * total)
  if section.images and not search.batch_size <= section.images <= half:
    raise UsageError(
      f'search.candidates.images = {section.images}: give 0 for all, or at '
      f'least one batch of search.batch_size = {search.batch_size} and at most '
      f'the {half} images of the validation half.'
    )


def what_is_judged(
  search: SearchConfig,
  searched: grid.NetworkSpec,
  derived: grid.NetworkSpec,
  cost_term: CostTerm,
  primitives: ops.Primitives = ops.PRIMITIVES,
) -> Judged:
  """Returns what all candidates of a search share.

  Args:
    search: `config.search`.
    searched: sizes of the network of the search.
    derived: those of the network to be derived; the nodes are the search's.
    cost_term: the cost of what is searched for.
    primitives: name -> operation, the choices on every edge.
  """
  specs = {
    'search': searched,
    'train': dataclasses.replace(derived, nodes=searched.nodes),
  }
  exits = {
    name: len(grid.build_plan(spec, field=f'{name}.network').exits)
    for name, spec in specs.items()
  }
  name = 'train' if exits['train'] == exits['search'] else 'search'
  if search.candidates.budget_range:
    low, high = search.candidates.budget_range
  else:
    tables = linear_cost.cost_tables(specs[name], primitives)
    low, high = 0.0, constrained.cost_range(tables, primitives)[1]
  return Judged(
    specs[name],
    name,
    (low, high),
    1.0 / searched.num_classes,
    cost_term,
    primitives,
    search,
  )


def gather(
  seed: int,
  histories: Mapping[int, Sequence[alphas_lib.Alphas]],
  judged: Judged,
) -> list[Candidate]:
  """Returns the candidates, none of them twice.

  Args:
    seed: of the random ones.
    histories: seed -> its alphas at the start and after each epoch; none of a
      search without alphas.
    judged: what may be chosen.

  Returns:
    Seed after seed, the last epoch first, then those drawn at random. Random
    ones that cost what they may are preferred.
  """
  section = judged.search.candidates
  found: list[tuple[Genotype, Mapping[str, int]]] = []
  for number, history in histories.items():
    last = len(history) - 1
    for epoch in range(last, max(last - section.last_epochs, 0), -1):
      weights = edges_lib.softmax_weights(history[epoch])
      found.append(
        (judged.cost_term.derive(weights), {'seed': number, 'epoch': epoch})
      )
  drawn = random_search.random_genotypes(
    seed,
    section.random,
    judged.spec.nodes,
    judged.primitives,
    judged.is_allowed,
  )
  found += [(genotype, {'random': n}) for n, genotype in enumerate(drawn)]
  candidates: dict[Any, Candidate] = {}
  for genotype, source in found:
    key = _key(genotype)
    if key in candidates:
      genotype = candidates[key].genotype
      source = *candidates[key].sources, source
    else:
      source = (source,)
    candidates[key] = Candidate(genotype, source)
  return list(candidates.values())


def _key(genotype: Genotype) -> Any:
  """Returns the same for genotypes that order the edges of a node apart."""
  return tuple(
    tuple(
      tuple(sorted(edges[start : start + 2]))
      for start in range(0, len(edges), 2)
    )
    for edges in (genotype.normal, genotype.reduction)
  )


def build_score(
  logits: Callable[[Any, alphas_lib.Alphas, jax.Array], jax.Array],
  dataset: Dataset,
) -> Score:
  """Returns the function that judges a genotype.

  It compiles once, or twice where images are brought to the device in pieces.

  Args:
    logits: (state, one-hot weights, normalised images) -> logits of all exits,
      see `methods.Method.logits`.
    dataset: its training images are read.

  Returns:
    See `Score`; the images are given as indices (batches, batch).
  """
  data = {'images': dataset.train_images, 'labels': dataset.train_labels}
  if feeding.fits(data, dataset.resident_bytes):
    data = parallel.replicate(data, 1)  # once for all genotypes

  @jax.jit
  def score(state, weights, data, batches):
    def one(rows):
      images, labels = data['images'][rows], data['labels'][rows]
      images = augmentation.normalize(images, dataset.mean, dataset.std)
      found = logits(state, weights, images)
      return (
        losses.exit_accuracies(found, labels),
        losses.exit_losses(found, labels),
      )

    return lax.map(one, batches)

  def mean_score(state, weights, batches):
    count = len(batches)
    plan = feeding.Plan(1, count, lambda _: batches, count)
    with contextlib.ExitStack() as stack:
      feed = feeding.open_feed(data, plan, 1, dataset.resident_bytes, stack)
      parts = []
      for first in range(0, count, feed.window):
        fed = feed(0, first, min(first + feed.window, count))
        # Waited for, so that no more windows are there than may be.
        parts.append(jax.device_get(score(state, weights, *fed)))
    return jax.tree.map(
      lambda *x: np.asarray(jnp.concatenate(x).mean(axis=0)), *parts
    )

  return mean_score


def validation_batches(search: SearchConfig, half: np.ndarray) -> np.ndarray:
  """Returns the images that judge, as indices (batches, batch).

  Args:
    search: `config.search`.
    half: indices of the images that train alphas, in random order.

  Returns:
    Whole batches of the search's size, since BNs see the batch; the rest is
    left out.
  """
  batch = search.batch_size
  count = (search.candidates.images or len(half)) // batch
  return half[: count * batch].reshape(count, batch)


def choose(
  candidates: Sequence[Candidate],
  judged: Judged,
  score: Score,
  judges: Mapping[int, tuple[Any, np.ndarray]],
  path: str,
  short: ShortTraining | None = None,
) -> dict[str, Any]:
  """Judges candidates and chooses the best one.

  What was judged is written at once, so that an interrupted call goes on.

  Args:
    candidates: see `gather`.
    judged: what they share.
    score: see `build_score`.
    judges: seed -> its state, and the images that judge, as indices
      (batches, batch).
    path: of `candidates.json`.
    short: trains the best, of which one is chosen then.

  Returns:
    The content of `candidates.json`: what `Judged` says, how many images of
    each seed judged, how many are `left` to judge, or to train, (0), and in
    `candidates`, for each, its `sources`, its `genotype`, `accuracy`, `loss`
    and `macs` per exit, `cost` in the metric of `search.cost`, `allowed` by its
    target, `score`, the accuracies, losses and scores `by_seed`, and whether it
    is the `chosen` one; of those that were trained `short`, its `accuracy` per
    exit and `score` after so many `epochs`.

  Raises:
    UsageError: none of the candidates costs what it may.
  """
  allowed = [judged.is_allowed(c.genotype) for c in candidates]
  if not any(allowed) and not judged.cost_term.config.target:
    raise UsageError(
      f'all of the {len(candidates)} candidates have more skip connections '
      f'than search.guards.max_skips = {judged.cost_term.max_skips}; allow '
      'more, or raise search.candidates.random.'
    )
  if not any(allowed):
    low, high = judged.cost_term.limits
    costs = [judged.cost_term.cost(c.genotype) for c in candidates]
    raise UsageError(
      f'none of the {len(candidates)} candidates costs between {low:,.0f} and '
      f'{high:,.0f}, but {min(costs):,.0f} to {max(costs):,.0f}; raise '
      'search.cost.tolerance or search.candidates.random.'
    )
  done, trained = _read_done(path)
  head = {
    'network': judged.network,
    'budget_range': list(judged.budget_range),
    'images': {str(s): int(rows.size) for s, (_, rows) in judges.items()},
  }
  records: list[dict[str, Any]] = []
  bar = progress.Progress(
    'judged',
    len(candidates),
    disable=not processes.is_first() or len(done) == len(candidates),
    unit='candidate',
  )

  def write(left: int) -> dict[str, Any]:
    content = {**head, 'left': left, 'candidates': records}
    if processes.is_first():
      files.write_json(path, content)
    return content

  for index, candidate in enumerate(candidates):
    by_seed: list[dict[str, Any]] = done.get(_key(candidate.genotype), [])
    is_new = [e['seed'] for e in by_seed] != list(judges)
    macs = judged.macs(candidate.genotype)
    if is_new:
      weights = judged.one_hot_weights(candidate.genotype)
      by_seed = []
      for seed, (state, batches) in judges.items():
        accuracy, loss = score(state, weights, batches)
        by_seed.append(
          {'seed': seed, 'accuracy': accuracy.tolist(), 'loss': loss.tolist()}
        )
    for entry in by_seed:
      entry['score'] = judged.score(macs, entry['accuracy'])
    records.append(
      {
        'sources': [dict(source) for source in candidate.sources],
        'genotype': json.loads(candidate.genotype.to_json()),
        'accuracy': np.mean([e['accuracy'] for e in by_seed], axis=0),
        'loss': np.mean([e['loss'] for e in by_seed], axis=0),
        'macs': macs,
        'cost': judged.cost_term.cost(candidate.genotype),
        'allowed': allowed[index],
        'score': float(np.mean([e['score'] for e in by_seed])),
        'by_seed': by_seed,
        'chosen': False,
      }
    )
    short_ = trained.get(_key(candidate.genotype))
    if short_ is not None:
      records[-1]['short'] = short_
    if is_new:
      write(len(candidates) - index - 1)
    bar.update()
  bar.close()
  best = sorted(
    (r for r in records if r['allowed']), key=lambda record: -record['score']
  )
  if short is not None:
    best = best[: short.count]
    for place, record in enumerate(best):
      found = record.get('short')
      if found is None or found['epochs'] != short.epochs:
        accuracy = short.accuracies(
          records.index(record), judged.spec, Genotype(**record['genotype'])
        )
        record['short'] = {
          'epochs': short.epochs,
          'accuracy': accuracy,
          'score': judged.score(record['macs'], accuracy),
        }
        write(len(best) - place - 1)
    best.sort(key=lambda record: -record['short']['score'])
  best[0]['chosen'] = True
  return write(0)


def _read_done(
  path: str,
) -> tuple[dict[Any, list[dict[str, Any]]], dict[Any, dict[str, Any]]]:
  """Returns what an earlier call has judged and trained, by genotype."""
  judged, trained = {}, {}
  if not files.is_file(path):
    return judged, trained
  content = files.read_json(path)
  try:
    for record in content['candidates']:
      key = _key(Genotype(**record['genotype']))
      judged[key] = [
        {
          'seed': entry['seed'],
          **{
            name: [float(value) for value in entry[name]]
            for name in ('accuracy', 'loss')
          },
        }
        for entry in record['by_seed']
      ]
      if 'short' in record:
        trained[key] = {
          'epochs': int(record['short']['epochs']),
          'accuracy': [float(x) for x in record['short']['accuracy']],
          'score': float(record['short']['score']),
        }
  except (KeyError, TypeError, ValueError, UsageError) as error:
    raise UsageError(
      f'{path} is not what a search writes ({error}); remove it, and the same '
      'command judges its candidates again.'
    ) from error
  return judged, trained


def best_of_each_seed(
  records: Sequence[Mapping[str, Any]],
) -> dict[int, Genotype]:
  """Returns the candidate that each seed's own params judge best.

  Args:
    records: the `candidates` of `candidates.json`.
  """
  allowed = [record for record in records if record['allowed']]
  return {
    entry['seed']: Genotype(
      **max(allowed, key=lambda r: r['by_seed'][index]['score'])['genotype']
    )
    for index, entry in enumerate(allowed[0]['by_seed'])
  }


def scores_of(
  records: Sequence[Mapping[str, Any]], genotypes: Sequence[Genotype]
) -> list[float] | None:
  """Returns the scores of genotypes, None where one was no candidate.

  Args:
    records: the `candidates` of `candidates.json`.
    genotypes: the genotypes.
  """
  scores = {_key(Genotype(**r['genotype'])): r['score'] for r in records}
  keys = [_key(genotype) for genotype in genotypes]
  return [scores[key] for key in keys] if scores.keys() >= set(keys) else None
