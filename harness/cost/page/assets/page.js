// The page: reads the setting, computes figures with the translated formulas above, and draws.
const { py, Setting, UsageError, models, gpus, parallelisms, cache_formats, engines, api_prices, component_names,
  opening_deployment, price_ratio_at, figures, fitting_batch, break_even, curve, weight_bytes, usable_bytes,
  where, basis_of } = formulas;
const element = (id) => document.getElementById(id);
const opening = JSON.parse(element("opening").textContent);
const TEXTS = opening.texts;
const STEPS_PER_DOUBLING = opening.steps_per_doubling;

// Numbers as people write them, as harness/core/units.py does.
const number = (value, digits = 4) => {
  if (!Number.isFinite(value)) return "–";
  if (value !== 0 && Math.abs(value) < 1e-4) return value.toExponential(digits - 1);
  const text = Number(value.toPrecision(digits));
  const whole = Math.abs(text) >= 10 ** (digits - 1);
  return whole ? Math.round(value).toLocaleString("en-US") : String(text);
};
const seconds = (value) => {
  const [unit, size] = value >= 1 ? ["s", 1] : value >= 1e-3 ? ["ms", 1e-3] : ["µs", 1e-6];
  return `${number(value / size)} ${unit}`;
};
const dollars = (value) => value === null ? "no price" : `$${number(value, 3)}`;
const percent = (share) => `${number(100 * share, 3)}%`;
const gib = (bytes) => `${number(bytes / 2 ** 30)} GiB`;

// The setting that the form shows; null while a field is empty or out of range.
function read() {
  const form = element("setting");
  if (!form.checkValidity()) return null;
  const numeric = (id) => Number(element(id).value);
  const hit_share = numeric("hits") / 100;
  const price = api_prices[element("price").value];
  return {
    price,
    setting: new Setting(
      models.get(element("model").value), element("dtype").value, py.replace(opening_deployment, {
        gpu: gpus.get(element("gpu").value), parallelism: parallelisms[element("parallelism").value],
        cache_format: cache_formats.get(element("cache_dtype").value), usd_per_hour: numeric("usd") || null,
        engine: engines.get(element("engine").value),
      }), numeric("batch"), numeric("context"), numeric("prompt"), hit_share, price_ratio_at(price, hit_share),
    ),
  };
}

// SVG, as text: an element with attributes and children.
const escaped = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");
const tag = (name, attributes, ...children) => {
  const given = Object.entries(attributes).map(([key, value]) => ` ${key}="${escaped(value)}"`).join("");
  return `<${name}${given}>${children.join("")}</${name}>`;
};
const words = (x, y, text, attributes = {}) => tag("text", { x, y, ...attributes }, escaped(text));
const line = (x1, y1, x2, y2, kind) => tag("line", { x1, y1, x2, y2, class: kind });
const polyline = (points, kind) => tag("polyline", { points: points.map((each) => each.join(",")).join(" "), class: kind });

// Puts a chart into the page, as wide as there is room, with its title and a sentence for those who cannot see it.
function show(id, height, title, sentence, draw) {
  const width = Math.max(280, Math.min(900, element(id).clientWidth || 680));
  element(id).innerHTML = tag(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-labelledby": `${id}-t ${id}-d` },
    tag("title", { id: `${id}-t` }, escaped(title)), tag("desc", { id: `${id}-d` }, escaped(sentence)), draw(width),
  );
}

// A logarithmic axis from `low` to `high` onto pixels `from` to `to`, and its decades.
function logarithmic(low, high, from, to) {
  const [a, b] = [Math.log10(low), Math.log10(high)];
  const place = (value) => Math.round(10 * (from + (to - from) * (Math.log10(value) - a) / (b - a))) / 10;
  const decades = [];
  for (let power = Math.ceil(a - 1e-9); power <= b + 1e-9; power++) decades.push(10 ** power);
  return Object.assign(place, { decades });
}
const PREFIXES = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const short = (value) => {
  const [size, prefix] = PREFIXES.find(([each]) => value >= each) ?? [1, ""];
  return `${number(value / size)} ${prefix}`;
};
function axes(x, y, [left, right, top, bottom], x_title, y_title) {
  const narrow = right - left < 400;
  return [
    ...x.decades.map((each) => line(x(each), top, x(each), bottom, "grid")
      + words(x(each), bottom + 16, short(each).trim(), { "text-anchor": "middle", class: "soft" })),
    ...y.decades.map((each) => line(left, y(each), right, y(each), "grid")
      + words(left - 6, y(each) + 4, short(each).trim(), { "text-anchor": "end", class: "soft" })),
    words((left + right) / 2, bottom + 34, x_title, { "text-anchor": "middle" }),
    words(narrow ? 2 : 4, top - 10, y_title),
  ].join("");
}
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
// Text beside a point, on the side where there is room.
const beside = (x, y, text, right, kind) => x > right * 0.6
  ? words(x - 10, y - 8, text, { "text-anchor": "end", class: kind }) : words(x + 10, y - 8, text, { class: kind });

// Text that is cut to a width, by the mean width of a letter.
const fitted = (text, width) => text.length * 7 < width ? text : `${text.slice(0, Math.floor(width / 7) - 1)}…`;

function drawRoofline(found, points) {
  const told = (point) => `${number(point.operations_per_byte)} operations per byte, `
    + `${short(point.flop_per_s)}FLOP/s, ${percent(point.flop_per_s / point.roof_flop_per_s)} of its roof. `;
  const sentence = `Prefill: ${told(found.prefill)}Decode step: ${told(found.decode)}`
    + `The roofs meet at ${number(found.roof_flop_per_s / found.roof_bytes_per_s)} operations per byte.`;
  show("roofline", 360, "Roofline with the prefill and the decode step", sentence, (width) => {
    const box = [58, width - 14, 30, 310];
    const all = [found.prefill, found.decode, ...points.map((each) => each.decode)];
    const ridge = found.roof_flop_per_s / found.roof_bytes_per_s;
    const marks = [...all.map((each) => each.operations_per_byte), ridge];
    const [low, high] = [Math.min(...marks) / 3, Math.max(...marks) * 4];
    const floor = Math.min(...all.map((each) => each.flop_per_s)) / 4;
    const x = logarithmic(low, high, box[0], box[1]);
    const y = logarithmic(floor, found.roof_flop_per_s * 4, box[3], box[2]);
    const roof = (intensity) => Math.min(found.roof_flop_per_s, intensity * found.roof_bytes_per_s);
    const knots = [Math.max(low, floor / found.roof_bytes_per_s), ridge, high];
    const rate = { class: "soft", "text-anchor": x(ridge) > width * 0.7 ? "end" : "start" };
    const at = (point) => [x(point.operations_per_byte), y(point.flop_per_s)];
    const [px, py_] = at(found.prefill);
    const [dx, dy] = at(found.decode);
    return axes(x, y, box, "operations per byte", "FLOP/s of a GPU")
      + polyline(knots.map((each) => [x(each), y(roof(each))]), "roof")
      + words(x(ridge) + 4, y(found.roof_flop_per_s) - 6, `${short(found.roof_flop_per_s)}FLOP/s`, rate)
      + polyline(points.map((each) => at(each.decode)), "path")
      + tag("circle", { cx: px, cy: py_, r: 7, class: "prefill" }) + beside(px, py_ + 30, "prefill", width, "prefill")
      + tag("rect", { x: dx - 6, y: dy - 6, width: 12, height: 12, class: "decode" })
      + beside(dx, dy + 30, "decode step", width, "decode");
  });
}

// The lines of the chosen prices, and of the lowest, the middle and the highest ratio of the list.
function priceLines(chosen, hit_share) {
  const ratios = api_prices.filter((each) => each.model !== opening.own_ratio)
    .map((price) => ({ price, ratio: price_ratio_at(price, hit_share) }))
    .sort((one, other) => one.ratio - other.ratio);
  const three = [ratios[0], ratios[Math.floor(ratios.length / 2)], ratios.at(-1)];
  const picked = new Map(three.map((each) => [each.price.model, each]));
  picked.set(chosen.model, { price: chosen, ratio: price_ratio_at(chosen, hit_share), chosen: true });
  return [...picked.values()];
}

function drawGap(setting, price, found, points, breakEven) {
  const lines = priceLines(price, setting.hit_share);
  const crossing = breakEven === undefined ? "" : breakEven === null
    ? ` No batch that fits has a gap as low as ${number(setting.price_ratio)}, the ratio of ${price.model}.`
    : ` The gap falls to ${number(setting.price_ratio)}, the ratio of ${price.model}, at batch ${number(breakEven)}.`;
  const last = points.at(-1);
  const sentence = `At batch ${number(setting.batch)} the gap is ${number(found.gap)}; it is ${number(points[0].gap)} at `
    + `batch 1 and ${number(last.gap)} at batch ${number(last.batch)}, the largest that fits.${crossing}`;
  show("gap", 360, "Gap against batch with price ratios", sentence, (width) => {
    const box = [48, width - 14, 30, 310];
    const gaps = [...points.map((each) => each.gap), ...lines.map((each) => each.ratio)];
    const x = logarithmic(1, Math.max(10, points.at(-1).batch), box[0], box[1]);
    const y = logarithmic(Math.min(...gaps) / 1.5, Math.max(...gaps) * 1.5, box[3], box[2]);
    // Labels of lines that lie close together are moved apart, from the bottom up.
    let free = Infinity;
    const labels = [...lines].sort((one, other) => one.ratio - other.ratio).map((each) => {
      const at = Math.min(y(each.ratio) - 4, free);
      free = at - 13;
      const { model } = each.price;
      const text = model === opening.own_ratio ? model : `${model}: ${number(each.ratio, 3)}`;
      return words(box[0] + 4, at, fitted(text, box[1] - box[0]), { class: "priced" });
    });
    return axes(x, y, box, "batch", "gap")
      + lines.map(({ ratio, chosen }) => (
        line(box[0], y(ratio), box[1], y(ratio), `price${chosen ? " chosen" : ""}`))).join("")
      + (breakEven ? line(x(breakEven), box[2], x(breakEven), box[3], "mark")
        + beside(x(breakEven), box[3] - 4, `break-even: ${number(breakEven)}`, width, "soft") : "")
      + polyline(points.map((each) => [x(each.batch), y(each.gap)]), "curve")
      + tag("rect", { x: x(setting.batch) - 6, y: y(found.gap) - 6, width: 12, height: 12, class: "decode" })
      + labels.join("");
  });
}

function drawSplit(found) {
  const rows = component_names.items();
  const of_output = (name) => found.output_split_s.get(name, 0) / found.output_s;
  const of_input = (name) => found.input_split_s.get(name, 0) / found.input_s;
  const sentence = rows.map(([name, text]) => `${text}: ${percent(of_output(name))} of an output token, `
    + `${percent(of_input(name))} of an input token`).join("; ");
  show("split", 40 + 44 * rows.length, "Components of a token's time", `${sentence}.`, (width) => {
    const left = width < 500 ? 8 : 230;
    const room = width - left - 62;
    const bar = (y, part, kind) => {
      const length = Math.max(0.5, Math.round(room * part * 10) / 10);
      return tag("rect", { x: left, y, width: length, height: 12, class: kind })
        + words(left + 5 + length, y + 10, percent(part), { class: "soft" });
    };
    return words(left, 14, "■ output token", { class: "decode" })
      + words(left + 110, 14, "■ input token", { class: "prefill" })
      + rows.map(([name, text], row) => {
        const y = 30 + 44 * row + (width < 500 ? 8 : 0);
        const label = width < 500
          ? words(left, y - 3, text) : words(left - 8, y + 17, text, { "text-anchor": "end" });
        return label + bar(y, of_output(name), "decode") + bar(y + 14, of_input(name), "prefill");
      }).join("");
  });
}

function drawUsd(found, price, hit_share) {
  const billed = price.input_usd_per_mtok * (1 - hit_share) + price.cached_input_usd_per_mtok * hit_share;
  const listed = price.model === opening.own_ratio ? [] : [
    [`${price.model}: average input`, billed, "priced"],
    [`${price.model}: output`, price.output_usd_per_mtok, "priced"],
  ];
  const rows = [
    ["input, computed", found.input_usd_per_mtok, "prefill"],
    ["average input, with cache hits", found.billed_input_usd_per_mtok, "prefill"],
    ["output", found.output_usd_per_mtok, "decode"], ...listed,
  ];
  const sentence = `${rows.map(([text, usd]) => `${text}: ${dollars(usd)}`).join("; ")}.`;
  show("usd-chart", 24 + 40 * rows.length, "US dollars of 1M tokens", sentence, (width) => {
    const most = Math.max(...rows.map(([, usd]) => usd ?? 0));
    const room = width - 90;
    return rows.map(([text, usd, kind], row) => {
      const y = 22 + 40 * row;
      const length = usd === null ? 0 : Math.max(1, Math.round(room * usd / most * 10) / 10);
      return words(4, y - 4, fitted(text, width)) + tag("rect", { x: 4, y, width: length, height: 14, class: kind })
        + words(10 + length, y + 12, dollars(usd), { class: "soft" });
    }).join("");
  });
}

// A table of rows: a text, and cells of a shown text and a value that is kept in full.
function table(id, caption, heads, rows) {
  const cell = ([text, value, key]) => {
    const attributes = { class: "number", "data-value": value ?? "" };
    return tag("td", key ? { ...attributes, "data-figure": key } : attributes, escaped(text));
  };
  const line_of = ([text, ...cells]) => tag("tr", {}, tag("th", { scope: "row" }, escaped(text)), ...cells.map(cell));
  const region = { class: "scroll", tabindex: 0, role: "region", "aria-label": caption };
  element(id).innerHTML = tag("div", region, tag("table", {},
    tag("caption", { class: "unseen" }, escaped(caption)),
    tag("thead", {}, tag("tr", {}, ...heads.map((each) => tag("th", { scope: "col" }, escaped(each))))),
    tag("tbody", {}, ...rows.map(line_of)),
  ));
}

function showTables(setting, price, found, points, breakEven) {
  const roof = (name, point) => {
    const { operations_per_byte, flop_per_s, roof_flop_per_s } = point;
    const reached = flop_per_s / roof_flop_per_s;
    return [
      [`${name}: operations per byte`, [number(operations_per_byte), operations_per_byte, `${name}.operations_per_byte`]],
      [`${name}: FLOP/s of a GPU`, [short(flop_per_s), flop_per_s, `${name}.flop_per_s`]],
      [`${name}: share of its roof`, [percent(reached), reached]],
    ];
  };
  const missing = (key) => key.includes("usd") ? "no price" : "none that fits";
  const rows = TEXTS.figures.map(([key, text, written]) => {
    const value = key === "break_even_batch" ? breakEven : found[key];
    const shown = value === undefined ? "…" : value === null ? missing(key) : SHOW[written](value);
    return [text, [shown, value, key]];
  });
  rows.push([
    `Price ratio, output over average input: ${price.model}`,
    [number(setting.price_ratio), setting.price_ratio, "price_ratio"],
  ]);
  rows.push(...roof("prefill", found.prefill), ...roof("decode", found.decode));
  table("numbers-table", "All numbers of the setting", ["figure", "value"], rows);

  const parts = (name, kind) => {
    const part = found[`${kind}_split_s`].get(name, 0);
    const share = part / found[`${kind}_s`];
    return [[seconds(part), part, `${kind}_split_s.${name}`], [percent(share), share]];
  };
  const heads = ["component", "output token", "share", "input token", "share"];
  const components = component_names.items().map(([name, text]) => [text, ...parts(name, "output"), ...parts(name, "input")]);
  table("components-table", "Components of a token's time", heads, components);

  const curve_rows = points.map(({ batch, gap, decode }) => [
    number(batch), [number(gap), gap], [number(decode.operations_per_byte), decode.operations_per_byte],
  ]);
  table("curve-table", "Gap by batch", ["batch", "gap", "operations per byte of a decode step"], curve_rows);
}
const SHOW = { seconds, number, dollars, gib };

function answerOf(setting, found) {
  const [output_usd, input_usd] = [found.output_usd_per_mtok, found.billed_input_usd_per_mtok].map(dollars);
  const usd = found.output_usd_per_mtok === null ? ""
    : ` 1M output tokens cost ${output_usd}, 1M average input tokens ${input_usd}.`;
  return `Modelled: on ${where(setting)}, an output token of ${setting.model.name} at batch ${number(setting.batch)} `
    + `costs ${number(found.gap, 3)} times the GPU time of an average input token. Each sequence gets a token every `
    + `${seconds(found.step_s)}; the largest part of that is ${component_names.get(found.bound)}.${usd}`;
}

// Computes and draws everything. The break-even batch takes a search, which waits until the reader pauses.
let pause = 0;
function update() {
  clearTimeout(pause);
  const asked = read();
  const problems = [];
  if (asked === null) {
    tell(["A field is empty or out of range; the figures below are those of the last setting."]);
    return;
  }
  let { setting, price } = asked;
  try {
    const fits = fitting_batch(setting);
    if (fits === 0) {
      fail(doesNotFit(setting));
      return;
    }
    if (setting.batch > fits) {
      problems.push(`Batch ${number(setting.batch)} does not fit the memory at this context. The figures are those of `
        + `batch ${number(fits)}, the largest that fits.`);
      setting = py.replace(setting, { batch: fits });
    }
    problems.push(...doubts(setting));
    const found = figures(setting);
    const points = curve(setting, found.billed_input_s);
    const draw = (breakEven) => {
      drawGap(setting, price, found, points, breakEven);
      showTables(setting, price, found, points, breakEven);
    };
    element("answer").textContent = answerOf(setting, found);
    element("basis").textContent = basis_of(setting);
    element("results").hidden = false;
    tell(problems);
    drawRoofline(found, points);
    drawSplit(found);
    drawUsd(found, price, setting.hit_share);
    draw(undefined);
    document.documentElement.dataset.pending = "break-even";
    pause = setTimeout(() => {
      draw(break_even(setting));
      delete document.documentElement.dataset.pending;
    }, opening.pause_ms);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    fail(error.message.replace(/^--[a-z-]+: /, ""));
  }
}
const doesNotFit = (setting) => `${setting.model.name} with one sequence of ${number(setting.context)} tokens does not `
  + `fit: its weights take ${gib(weight_bytes(setting))} a GPU, of ${gib(usable_bytes(setting))} that are usable. `
  + "Choose more GPUs, a larger GPU or a narrower precision.";
// What to doubt: sizes that the model is not made for, and what was assumed of its config.json.
function doubts({ model, context, prompt }) {
  const longest = model.max_position_embeddings ?? Infinity;
  const beyond = Math.max(context, prompt) > longest
    ? [`${model.name} is made for at most ${number(longest)} tokens; the figures go beyond that.`] : [];
  return [...beyond, ...(model.assumed ?? []).map((each) => `Assumed: ${each}.`)];
}
function tell(lines) {
  element("problem").textContent = lines.join(" ");
  element("problem").hidden = lines.length === 0;
}
function fail(text) {
  tell([text]);
  element("answer").textContent = "There are no figures for this setting.";
  element("results").hidden = true;
  delete document.documentElement.dataset.pending;
}

// A slider moves in equal steps of a doubling; its number field takes any whole number.
function join(id, toSlider, toNumber) {
  const [field, slider] = [element(id), element(`${id}_slider`)];
  const follow = () => {
    if (field.validity.valid) slider.value = toSlider(Number(field.value));
    slider.setAttribute("aria-valuetext", field.value);
  };
  slider.addEventListener("input", () => {
    field.value = clamp(toNumber(Number(slider.value)), Number(field.min), Number(field.max));
    slider.setAttribute("aria-valuetext", field.value);
  });
  field.addEventListener("input", follow);
  field.value = opening.setting[id];
  follow();
}
const steps = (value) => Math.round(Math.log2(value) * STEPS_PER_DOUBLING);
const doubled = (step) => Math.round(2 ** (step / STEPS_PER_DOUBLING));
for (const id of ["batch", "context", "prompt"]) join(id, steps, doubled);
join("hits", (value) => value, (step) => step);
for (const id of ["model", "gpu", "parallelism", "dtype", "cache_dtype", "engine", "price", "usd"]) {
  element(id).value = opening.setting[id] ?? "";
}
element("gpu").addEventListener("change", () => {
  element("usd").value = gpus.get(element("gpu").value).usd_per_hour ?? "";
});
element("setting").addEventListener("input", update);
element("setting").addEventListener("change", update);
element("setting").addEventListener("submit", (event) => event.preventDefault());
let width = innerWidth;
window.addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; update(); } });
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
update();
document.documentElement.dataset.drawn = "yes";
