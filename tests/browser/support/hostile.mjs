/** Texts that a device gone wrong, or somebody in its place, might send to session `s1`. None is a message of this protocol. */
const ODD = [0, 7, -1e308, true, false, null, [], ['s1'], {}, { s1: 's1' }, [[['s1']]]];
const deep = (open, close) => open.repeat(5_000) + close.repeat(5_000);

export const HOSTILE = [
  '', ' ', '{', '"', 'nonsense', '\0', '\ufeff{}', 'NaN', '{"v":1', '{"v":1,}', deep('[', ']'), deep('{"v":', '}'), '['.repeat(60_000),
  ...ODD.map((value) => JSON.stringify(value)),
  '"s1"', '[{"v":1,"type":"bye","session":"s1"}]', '{"type":"bye","session":"s1"}',
  ...[...ODD, '1', 2, 1.5].map((v) => JSON.stringify({ v, type: 'bye', session: 's1' })),
  ...['type', 'id', 'session', 'code', 'message', 'reason'].flatMap((field) => ODD.map((odd) => JSON.stringify({ v: 1, type: 'error', session: 's1', id: 's1.1', [field]: odd }))),
  `{"v":1,"type":"error","session":"s1","id":${deep('[', ']')}}`,
  '{"v":1,"type":"error","session":"__proto__"}', '{"v":1,"__proto__":{"type":"bye","session":"s1"}}', '{"v":1,"type":"bye","session":"constructor"}',
];
