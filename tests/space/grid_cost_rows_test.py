"""The grid's rows can be run in their order."""

from ms_ranas_jax.baselines import cells as published_cells
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib


def test_rows_come_step_after_step_and_read_what_is_there():
  network = network_lib.derived_network(
    grid.NetworkSpec(4, 5, 4, scales=3, image_shape=(33, 32, 1)),
    published_cells.DARTS_V1,
  )
  rows = network.cost_rows()
  steps = [row.step for row in rows]
  assert steps == sorted(steps)
  made = {'images'}
  cells = {cell.output.name: cell for cell in network.plan.cells}
  for row in rows:
    for name in row.inputs:
      if name in cells:
        reduction = cells[name].reduction
        wiring = network.reduction if reduction else network.normal
        assert {f'{name}/{state}' for state in wiring.concat} <= made
      else:
        assert name in made
    made.add(row.output)
