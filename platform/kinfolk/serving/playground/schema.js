/** What a task can be told, read off the OpenAPI document of its model. */

const MOST_CLASSES = 100; // more are typed, not clicked

function resolved(schema, components) {
  const reference = schema.$ref ?? schema.allOf?.[0]?.$ref;
  return reference ? { ...components[reference.split("/").pop()], ...schema } : schema;
}

function variants(schema, components) {
  return (schema.anyOf ?? [schema]).map((each) => resolved(each, components));
}

function sort(main, listed) {
  if (main.contentEncoding === "base64") return "given";
  if (main.enum) return "choice";
  if (main.type === "boolean") return "flag";
  if (main.type === "array") return "list";
  if (main.type === "integer" && listed && bounds(main).max < MOST_CLASSES) return "classes";
  return ["integer", "number"].includes(main.type) ? main.type : "text";
}

function bounds(main) {
  const whole = main.type === "integer" ? 1 : 0;
  const low = main.exclusiveMinimum ?? null;
  const high = main.exclusiveMaximum ?? null;
  const max = main.maximum ?? (high === null ? null : high - whole);
  return {
    min: main.minimum ?? (low === null ? null : low + whole),
    max: max === null ? null : Math.min(max, Number.MAX_SAFE_INTEGER),
    above: whole || low === null ? null : low,
    below: whole || high === null ? null : high,
  };
}

function setting(name, schema, required, components) {
  const whole = resolved(schema, components);
  const all = variants(whole, components);
  const main = all.find((each) => each.type !== "null" && each.type !== "array") ?? all[0];
  return {
    name,
    sort: sort(
      main,
      all.some((each) => each.type === "array"),
    ),
    choices: main.enum ?? [],
    nullable: all.some((each) => each.type === "null"),
    default: whole.default ?? null,
    description: whole.description ?? "",
    required,
    ...bounds(main),
  };
}

/** The settings of one task, in the order the server lists them. */
export function settingsOf(openapi, task) {
  const body = openapi.paths[`/${task}`]?.post?.requestBody.content["application/json"].schema ?? {};
  const required = new Set(body.required ?? []);
  const components = openapi.components?.schemas ?? {};
  return Object.entries(body.properties ?? {}).map(([name, schema]) =>
    setting(name, schema, required.has(name), components),
  );
}

/** The limits of a setting in words, empty where it has none. */
export function limits({ sort: kind, choices, min, max, above, below }) {
  if (kind === "choice") return choices.join(", ");
  if (above !== null && max !== null) return `above ${above}, to ${max}`;
  if (above !== null) return `above ${above}`;
  if (below !== null) return `${min ?? ""} to below ${below}`;
  const top = max === Number.MAX_SAFE_INTEGER ? null : max;
  if (min !== null && top !== null) return `${min} to ${top}`;
  if (min !== null) return `from ${min}`;
  return top === null ? "" : `up to ${top}`;
}

/** What a model has to say of data: its kind and size. */
export const sizeOf = (spec) => `${spec.kind} ${spec.shape.join("×")}`;

/** Whether data of `spec` is a grey or colour picture that a screen shows. */
export function isPicture(spec) {
  return Boolean(spec && spec.kind === "image" && spec.levels && [1, 3].includes(spec.shape[0]));
}

/** The name of a model in addresses. */
export const routeOf = (model) => model.address.split("/").pop();
