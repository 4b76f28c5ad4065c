"""What the figures consist of."""

import pytest

from ms_ranas_jax import sections
from ms_ranas_jax.studies import entries as entries_lib


@pytest.mark.parametrize('size', sections.SIZES)
@pytest.mark.parametrize('name', sections.FIGURES)
def test_no_two_entries_have_one_name(name, size):
  entries = entries_lib.of(name, size).entries
  assert len({entry.name for entry in entries}) == len(entries)
  assert len({entry.label for entry in entries}) == len(entries)
  # Folders are called after them.
  assert not any(set(entry.name) & set(' /,') for entry in entries)


def test_figure4_is_every_combination_in_the_search_alone():
  entries = entries_lib.of('figure4', 'paper').entries
  assert {entry.train for entry in entries} == {entries_lib.Setting()}
  assert {
    (entry.search.scales, entry.search.exits, entry.search.cutout)
    for entry in entries
  } == {(s, e, c) for s in (1, 2, 3) for e in (0, 1) for c in (0, 1)}
  assert len(entries) == 12
  assert [entry.label for entry in entries[:4]] == [
    'baseline',
    'cutout',
    'exits',
    'cutout, exits',
  ]


@pytest.mark.parametrize(
  ('name', 'count', 'cutout'), [('figure5', 11, True), ('figure6', 6, False)]
)
def test_figures_5_and_6_train_with_exits(name, count, cutout):
  entries = entries_lib.of(name, 'paper').entries
  assert len(entries) == count
  assert all(entry.train.exits for entry in entries)
  used = any(s.cutout for e in entries for s in (e.search, e.train))
  assert used == cutout
  # A network has in training the scales that it was searched with, or the
  # search had one.
  assert all(e.search.scales in (1, e.train.scales) for e in entries)
  assert {entry.train.scales for entry in entries} == {1, 2, 3}


def test_a_setting_sets_what_it_says():
  setting = entries_lib.Setting(scales=3, exits=True, cutout=True)
  assert (setting.name, setting.label) == (
    'cutout+exits+3scales',
    'cutout, exits, 3 scales',
  )
  assert setting.changes('search', 16) == {
    'search.cutout': 16,
    'search.network.scales': 3,
    'search.network.exits': 'all_but_first',
  }
  assert entries_lib.Setting().changes('train', 16) == {
    'train.cutout': 0,
    'train.network.scales': 1,
    'train.network.exits': 'last',
  }


@pytest.mark.parametrize('size', sections.SIZES)
@pytest.mark.parametrize('name', ['figure9', 'figure10'])
def test_figures_9_and_10_compare_four_networks(name, size):
  figure = entries_lib.of(name, size)
  assert [entry.label for entry in figure.entries] == [
    'MS-RANAS',
    'MSDNet',
    'GHN',
    'DARTS with exits',
  ]
  assert figure.compared == ('ms_ranas', 'msdnet')
  assert figure.params_of == 'msdnet'
  assert [entry.aims_at for entry in figure.entries] == (
    ['msdnet', '', 'msdnet', '']
  )
  # The recipe is the config's, for all.
  for entry in figure.entries:
    assert entry.search is entry.train is None
    assert all(
      field.startswith(('train.network.', 'search.'))
      or field in ('train.genotype', 'train.drop_path', 'train.remat')
      for field in entry.changes
    )
