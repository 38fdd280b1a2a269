// One request's explanation (router/explanation.py) as elements.

import { duration, make, number, stack } from "./draw.js";

/** Make what the dialog shows of an explanation. */
export function explained(told) {
  return [...verdict(told), ...timeline(told.timeline), ...choice(told), ...candidates(told.candidates), ...cache(told), ...troubles(told)];
}

function facts(pairs) {
  return make("dl", { class: "facts" },
    ...pairs.filter(([, value]) => value !== null).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function interval(predicted) {
  return predicted === null ? null : `${duration(predicted.ms)} (${duration(predicted.low_ms)} to ${duration(predicted.high_ms)})`;
}

function verdict(told) {
  const { actual } = told;
  return [
    facts([
      ["verdict", told.verdict],
      ["class", told.slo_class],
      ["status", told.status ? String(told.status) : told.state],
      ["route", told.path],
      ["TTFT", actual.ttft_ms === null ? null : `${duration(actual.ttft_ms)} of ${duration(told.ttft_target_ms)}`],
      ["TTFT predicted", interval(told.predicted_ttft)],
      ["TPOT", actual.tpot_ms === null ? null : `${duration(actual.tpot_ms)} of ${duration(told.tpot_target_ms)}`],
      ["TPOT predicted", interval(told.predicted_tpot)],
      ["total", actual.e2e_ms === null ? null : duration(actual.e2e_ms)],
      ["output tokens", actual.output_tokens ? number(actual.output_tokens) : null],
    ]),
  ];
}

function timeline(line) {
  const names = line.stages.map((stage) => stage.name);
  const rows = line.stages.map((stage, at) =>
    make("tr", {}, make("th", { scope: "row" }, make("span", { class: `swatch s${at}` }), stage.name.replace("_", " ")),
      make("td", { class: "n" }, duration(stage.ms)),
      make("td", { class: "n soft" }, line.total_ms ? `${((100 * stage.ms) / line.total_ms).toFixed(1)} %` : "")));
  const more = [];
  if (line.transfer_hidden_ms !== null) more.push(`${duration(line.transfer_hidden_ms)} more of the transfer were hidden behind prefill.`);
  if (line.output_ms !== null) more.push(`The output took ${duration(line.output_ms)} more.`);
  return [
    make("h3", {}, `Time until ${line.until}: ${duration(line.total_ms)}`),
    stack(line.stages.map((stage) => stage.ms), names, line.stages.map((stage) => `${stage.name.replace("_", " ")} ${duration(stage.ms)}`).join(", ")),
    make("table", {}, make("tbody", {}, ...rows)),
    make("p", { class: "soft" }, more.join(" ")),
  ];
}

function choice(told) {
  const made = told.choice;
  if (made === null) return [make("h3", {}, "Decision"), make("p", { class: "soft" }, "it was not decided")];
  const words = { route: "sent", hold: "held back", rejection: "refused" }[made.kind];
  const where = made.decode === null ? "" : made.prefill === null ? ` to ${made.decode} alone` : ` to ${made.prefill} and ${made.decode}`;
  const found = [
    make("h3", {}, "Decision"),
    make("p", {}, `${words}${where} after ${duration(made.at_ms)}: ${made.reason}`),
    make("p", { class: "soft" }, made.because),
  ];
  if (made.earliest_feasible_ms !== null) found.push(make("p", {}, `feasible after ${duration(made.earliest_feasible_ms)}`));
  return found;
}

function candidates(routes) {
  if (routes.every((route) => route.ttft === null)) return []; // the policy does not predict
  const heads = ["prefill", "decode", "TTFT", "queue", "prefill", "transfer", "blocks", "first step", "TPOT"];
  const rows = routes.map((route) =>
    make("tr", { class: route.chosen ? "chosen" : null }, make("td", {}, route.prefill ?? "–"), make("td", {}, route.chosen ? `${route.decode} (taken)` : route.decode),
      ...[route.ttft?.ms, route.queue_ms, route.prefill_ms, route.transfer_ms, route.blocks_ms, route.first_step_ms, route.tpot?.ms].map((ms) =>
        make("td", { class: "n" }, duration(ms)))));
  const head = make("tr", {}, ...heads.map((text, at) => make("th", { scope: "col", class: at > 1 ? "n" : null }, text)));
  return [
    make("h3", {}, "Routes that were open, as predicted"),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "routes" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))),
  ];
}

function cache({ cache: used }) {
  const tokens = (value) => (value === null ? null : number(value));
  return [
    make("h3", {}, "Prompt tokens"),
    facts([
      ["estimated", tokens(used.prompt_tokens_estimate)],
      ["counted", tokens(used.prompt_tokens)],
      ["believed cached at prefill", tokens(used.believed_prefill)],
      ["cached at prefill", tokens(used.cached_prefill)],
      ["believed cached at decode", tokens(used.believed_decode)],
      ["cached at decode", tokens(used.cached_decode)],
      ["received by decode", tokens(used.received_decode)],
    ]),
  ];
}

function troubles(told) {
  const found = [];
  if (told.num_holds) {
    found.push(make("h3", {}, `Held back ${number(told.num_holds)} times`));
    found.push(...told.holds.map((hold) => make("p", {}, `after ${duration(hold.at_ms)}, at most until ${duration(hold.until_ms)}: ${hold.reason}`)));
  }
  if (told.failed_tries.length) {
    found.push(make("h3", {}, "Tries that failed"));
    found.push(...told.failed_tries.map((t) => make("p", {}, `${t.prefill === null ? "" : `${t.prefill} and `}${t.decode}: ${t.error}`)));
  }
  return found;
}
