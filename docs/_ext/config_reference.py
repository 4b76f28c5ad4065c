"""The directive `config-fields SECTION`: every field of a section of a config.

It reads the one place where fields stand, so that the page is never another one
than the program.
"""

from __future__ import annotations

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from ms_ranas_jax import families
from ms_ranas_jax import fields
from ms_ranas_jax import sections
from ms_ranas_jax.search import methods


def entries_of(section: str) -> list[fields.Entry]:
  """Returns the fields of a section, those of sections within it apart.

  Args:
    section: such as 'train', or 'train.network:msdnet' and 'search:ghn' for
      those of a family or method; '' is what stands in no section.
  """
  name, _, kind = section.partition(':')
  if kind:
    known = families.FAMILIES if name == 'train.network' else methods.METHODS
    found = fields.entries(known[kind].config, f'{name}.')
    usual = {entry.name for entry in fields.entries(sections.Config)}
    if name == 'search':  # of a family, a field may have another default
      found = [entry for entry in found if entry.name not in usual]
  else:
    found = fields.entries(sections.Config)
  depth = name.count('.') + 1 if name else 0
  return [
    entry
    for entry in found
    if entry.name.startswith(f'{name}.' if name else '')
    and (entry.name.count('.') == depth or kind)
  ]


class ConfigFields(Directive):
  """A table of fields: name, default, what it may be, what it decides."""

  required_arguments = 0
  optional_arguments = 1

  def run(self) -> list[nodes.Node]:
    """Returns the table."""
    section = self.arguments[0] if self.arguments else ''
    found = entries_of(section)
    if not found:
      raise self.error(f'there is no section {section!r} with fields')
    table = nodes.table(classes=['config-fields'])
    group = nodes.tgroup(cols=3)
    table += group
    for width in (30, 20, 50):
      group += nodes.colspec(colwidth=width)
    head = nodes.thead()
    group += head
    head += _row([nodes.Text(t) for t in ('field', 'default', 'meaning')])
    body = nodes.tbody()
    group += body
    for entry in found:
      body += _row(
        [
          nodes.literal(text=entry.name),
          nodes.literal(text=repr(entry.default)),
          nodes.Text(_meaning(entry)),
        ]
      )
    return [table]


def _row(cells: list[nodes.Node]) -> nodes.row:
  row = nodes.row()
  for cell in cells:
    row += nodes.entry('', nodes.paragraph('', '', cell))
  return row


def _meaning(entry: fields.Entry) -> str:
  """Returns what a field decides and may be, in sentences."""
  field = entry.field
  text = f'{field.meaning[0].upper()}{field.meaning[1:]}'
  if field.unit and field.unit not in text:
    text += f', in {field.unit}'
  text += f'. {field.rule.expected[0].upper()}{field.rule.expected[1:]}.'
  if field.needs is not None:
    other, wanted = field.needs
    value = wanted.expected if isinstance(wanted, fields.Rule) else wanted
    text += f' Only with {other}' + ('.' if wanted is None else f' = {value}.')
  if field.free:
    text += ' May change in a work directory.'
  return text


def setup(app: Sphinx) -> dict[str, bool]:
  """Adds the directive."""
  app.add_directive('config-fields', ConfigFields)
  return {'parallel_read_safe': True}
