// What Python's operators and built-in functions do where JavaScript's differ.
const py = (() => {
  class Keywords { constructor(named) { Object.assign(this, named); } }
  const keywords = (named) => new Keywords(named);
  // Positional arguments of a call, and its keywords.
  const apart = (given) => {
    const named = given.at(-1) instanceof Keywords ? given.pop() : {};
    return [given, named];
  };
  // Equal keys have equal texts. Data classes are frozen and equal by value, so that their text is kept.
  const keyOf = (key) => {
    if (Array.isArray(key)) return `[${key.map(keyOf)}]`;
    if (key === null || (typeof key !== "object" && typeof key !== "function")) return JSON.stringify(key);
    if (!keys.has(key)) keys.set(key, keyOfObject(key));
    return keys.get(key);
  };
  const keys = new WeakMap();
  const keyOfObject = (key) => {
    if (typeof key === "function") return `class ${key.name}`;
    if (key instanceof Dict) return `{${key.items().map(keyOf)}}`;
    return `${key.constructor.name}(${Object.values(key).map(keyOf)})`;
  };
  class Dict {
    constructor(pairs) { this.map = new Map(); for (const [key, value] of pairs) this.set(key, value); }
    set(key, value) { this.map.set(keyOf(key), [key, value]); }
    get(key, otherwise = null) { return this.map.has(keyOf(key)) ? this.map.get(keyOf(key))[1] : otherwise; }
    has(key) { return this.map.has(keyOf(key)); }
    items() { return [...this.map.values()]; }
    keys() { return this.items().map(([key]) => key); }
    values() { return this.items().map(([, value]) => value); }
    [Symbol.iterator]() { return this.keys()[Symbol.iterator](); }
  }
  class KeySet extends Dict {
    constructor(keys) { super(Array.from(keys, (key) => [key, true])); }
  }
  const dict = (pairs = []) => new Dict(pairs instanceof Dict ? pairs.items() : pairs);
  const set = (keys = []) => new KeySet(keys);
  const list = (iterable = []) => Array.isArray(iterable) ? iterable : Array.from(iterable);
  const truth = (value) => {
    if (Array.isArray(value)) return value.length > 0;
    return value instanceof Dict ? value.map.size > 0 : Boolean(value);
  };
  const eq = (one, other) => {
    if (Array.isArray(one) && Array.isArray(other)) {
      return one.length === other.length && one.every((each, at) => eq(each, other[at]));
    }
    const alike = one !== null && typeof one === "object" && other !== null && typeof other === "object";
    if (!alike || one === other || one.constructor !== other.constructor) return one === other;
    return Object.keys(one).every((name) => eq(one[name], other[name]));
  };
  const at = (from, key) => {
    if (from instanceof Dict && from.has(key)) return from.get(key);
    const found = from instanceof Dict ? undefined : from[key < 0 ? from.length + key : key];
    if (found === undefined) throw new Error(`no element ${String(key)}`);
    return found;
  };
  const isinstance = (value, type) => {
    if (Array.isArray(type)) return type.some((each) => isinstance(value, each));
    if (type === int || type === float) return typeof value === "number";
    if (type === str) return typeof value === "string";
    return value instanceof type || Boolean(value?.constructor?.bases?.includes(type.name));
  };
  const int = (value) => Math.trunc(Number(value));
  const float = (value) => ({ inf: Infinity, nan: NaN })[value] ?? Number(value);
  const str = (value) => value === null ? "None" : String(value);
  // Of the best of equals, the first, as in Python.
  const best = (given, better) => {
    const [args, { key = (each) => each, default: otherwise }] = apart(given);
    const from = args.length === 1 ? list(args[0]) : args;
    if (from.length === 0 && otherwise !== undefined) return otherwise;
    if (from.length === 0) throw new Error("no elements");
    let found = from[0];
    let mark = key(found);
    for (const each of from.slice(1)) {
      const next = key(each);
      if (better(order(next, mark))) [found, mark] = [each, next];
    }
    return found;
  };
  const order = (one, other) => {
    if (Array.isArray(one)) {
      for (let n = 0; n < Math.min(one.length, other.length); n++) {
        const compared = order(one[n], other[n]);
        if (compared) return compared;
      }
      return one.length - other.length;
    }
    return one < other ? -1 : one > other ? 1 : 0;
  };
  const range = (...bounds) => {
    const [start, stop, step = 1] = bounds.length === 1 ? [0, bounds[0]] : bounds;
    return Array.from({ length: Math.max(0, Math.ceil((stop - start) / step)) }, (_, n) => start + n * step);
  };
  // Half to even, as in Python.
  const round = (value, digits = 0) => {
    const scaled = value * 10 ** digits;
    const whole = Math.round(scaled);
    const even = Math.abs(scaled % 1) === 0.5 && whole % 2 !== 0 ? whole - 1 : whole;
    return even / 10 ** digits;
  };
  const format = (value, spec) => {
    const [, commas, digits, kind] = /^(,?)(?:\.(\d+))?([a-z%]?)$/.exec(spec) ?? [];
    if (kind === "%") return `${(value * 100).toFixed(digits ?? 6)}%`;
    if (kind === "f") {
      const decimals = { minimumFractionDigits: digits ?? 6, maximumFractionDigits: digits ?? 6 };
      return value.toLocaleString("en-US", { ...decimals, useGrouping: Boolean(commas) });
    }
    if (kind === "g") return String(Number(value.toPrecision(digits ?? 6)));
    return commas ? value.toLocaleString("en-US") : str(value);
  };
  // Arguments in the order of a function's parameters, from pairs of names and values and from dicts.
  const bound = (parameters, pairs, ...dicts) => {
    const given = dict([...pairs, ...dicts.flatMap((each) => each.items())]);
    const known = new Set(parameters.filter(([, collects]) => !collects).map(([name]) => name));
    return parameters.map(([name, collects]) => collects === "**"
      ? dict(given.items().filter(([key]) => !known.has(key))) : given.has(name) ? given.get(name) : undefined);
  };
  const cached = (compute) => {
    const found = new Map();
    return (...given) => {
      const key = keyOf(given);
      if (found.size > 10_000) found.clear();
      if (!found.has(key)) found.set(key, compute(...given));
      return found.get(key);
    };
  };
  const construct = (type, named) => new type(...bound(type.fields.map((name) => [name, ""]), [], named));
  // A compiled pattern; only complete matches are asked for.
  const pattern = (text) => ({
    fullmatch: (given) => {
      const match = new RegExp(`^(?:${text.replaceAll("?P<", "?<")})$`).exec(given);
      return match && dict([...Object.entries(match.groups ?? {}), ...match.entries()]);
    },
  });
  const made = (type, fields) => Object.assign(Object.create(type.prototype), fields);
  return {
    Dict, keywords, dict, set, list, truth, eq, at, isinstance, int, float, str, range, round, format, bound, cached,
    construct, made, pattern,
    tuple: list,
    iter: (value) => value,
    bool: truth,
    has: (from, value) => from instanceof Dict ? from.has(value)
      : typeof from === "string" ? from.includes(value) : list(from).some((each) => eq(each, value)),
    put: (into, key, value) => { if (into instanceof Dict) into.set(key, value); else into[key] = value; },
    add: (one, other) => Array.isArray(one) ? [...one, ...other] : one + other,
    and: (one, other) => truth(one) ? other() : one,
    or: (one, other) => truth(one) ? one : other(),
    either: (one, other) => one instanceof KeySet ? set([...one, ...other]) : one instanceof Dict
      ? dict([...one.items(), ...other.items()]) : [one, other].flat(),
    both: (one, other) => set([...one].filter((each) => other.has(each))),
    without: (one, other) => set([...one].filter((each) => !other.has(each))),
    slice: (from, low, high) => from.slice(low ?? 0, high ?? undefined),
    min: (...given) => best(given, (compared) => compared < 0),
    max: (...given) => best(given, (compared) => compared > 0),
    sum: (values, start = 0) => list(values).reduce((one, other) => one + other, start),
    prod: (values) => list(values).reduce((one, other) => one * other, 1),
    divmod: (one, other) => [Math.floor(one / other), one - other * Math.floor(one / other)],
    isclose: (one, other) => Math.abs(one - other) <= 1e-9 * Math.max(Math.abs(one), Math.abs(other)),
    fields: (type) => type.fields.map((name) => ({ name })),
    gcd: (one, other) => { while (other) [one, other] = [other, one % other]; return one; },
    len: (value) => value instanceof Dict ? value.map.size : value.length,
    abs: Math.abs,
    all: (values) => list(values).every(truth),
    any: (values) => list(values).some(truth),
    enumerate: (values, start = 0) => list(values).map((each, at) => [at + start, each]),
    zip: (...given) => {
      const lists = apart(given)[0].map(list);
      return range(Math.min(...lists.map((each) => each.length))).map((at) => lists.map((each) => each[at]));
    },
    next: (values, otherwise) => { for (const each of values) return each; return otherwise; },
    reversed: (values) => [...values].reverse(),
    sorted: (...given) => {
      const [[values], { key = (each) => each, reverse = false }] = apart(given);
      return [...values].sort((one, other) => (reverse ? -1 : 1) * order(key(one), key(other)));
    },
    pairwise: (values) => list(values).slice(1).map((each, at) => [list(values)[at], each]),
    chain: (...lists) => lists.flatMap(list),
    flat: (lists) => list(lists).flatMap(list),
    product: (...lists) => lists.reduce((all, each) => all.flatMap((head) => list(each).map((one) => [...head, one])), [[]]),
    fromkeys: (keys, value = null) => dict(list(keys).map((key) => [key, value])),
    getattr: (from, name, otherwise) => from[name] ?? otherwise,
    replace: (from, changes) => Object.assign(made(from.constructor, from), changes),
    object: (from) => Object.fromEntries(from.items()),
    join: (joint, texts) => list(texts).join(joint),
    extend: (into, values) => into.push(...values),
    index: (from, value) => list(from).findIndex((each) => eq(each, value)),
    partition: (text, joint) => {
      const at = text.indexOf(joint);
      return at < 0 ? [text, "", ""] : [text.slice(0, at), joint, text.slice(at + joint.length)];
    },
    removeprefix: (text, head) => text.startsWith(head) ? text.slice(head.length) : text,
    count: (from, value) => list(from).filter((each) => eq(each, value)).length,
    repr: (value) => typeof value === "string" ? `'${value}'` : str(value),
    assert: (holds) => { if (!holds) throw new Error("assertion"); },
  };
})();
