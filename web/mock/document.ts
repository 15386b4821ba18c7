// The committed OpenAPI document, as the mock reads it: its operations, and a check of values.

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";

/** A JSON schema, as far as the document uses it. */
export interface Schema {
  $ref?: string;
  type?: string | string[];
  format?: string;
  enum?: unknown[];
  oneOf?: Schema[];
  anyOf?: Schema[];
  allOf?: Schema[];
  properties?: Record<string, Schema>;
  required?: string[];
  additionalProperties?: boolean | Schema;
  items?: Schema;
  uniqueItems?: boolean;
  minimum?: number;
  maximum?: number;
  minLength?: number;
  maxLength?: number;
}

/** One operation of the API. */
export interface Operation {
  id: string;
  method: string;
  path: string;
  /** Media type of the answer; none for what becomes a WebSocket. */
  media: string | undefined;
  reply: Schema | undefined;
  body: Schema | undefined;
  /** Whether a request without a body is refused. */
  bodyRequired: boolean;
  query: { name: string; schema: Schema }[];
}

interface Content {
  content?: Record<string, { schema?: Schema }>;
}

interface DocumentOperation {
  operationId: string;
  parameters?: { name: string; in: string; schema: Schema }[];
  requestBody?: Content & { required?: boolean };
  responses: Record<string, Content>;
}

interface OpenApi {
  paths: Record<string, Record<string, DocumentOperation>>;
  components: { schemas: Record<string, Schema> };
}

const FILE = join(dirname(fileURLToPath(import.meta.url)), "../../openapi/muster-v1.json");
const SCHEMAS = "#/components/schemas/";

export const document: OpenApi = JSON.parse(readFileSync(FILE, "utf8"));

export const operations: Operation[] = Object.entries(document.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => {
    const content = operation.responses["200"]?.content ?? {};
    const [media] = Object.keys(content);
    return {
      id: operation.operationId,
      method: method.toUpperCase(),
      path,
      media,
      reply: media ? content[media]?.schema : undefined,
      body: operation.requestBody?.content?.["application/json"]?.schema,
      bodyRequired: operation.requestBody?.required ?? false,
      query: (operation.parameters ?? []).filter((it) => it.in === "query"),
    };
  }),
);

/** The schema that a reference names. */
export function referred(reference: string): { name: string; schema: Schema } {
  const name = reference.slice(SCHEMAS.length);
  const schema = document.components.schemas[name];
  if (!reference.startsWith(SCHEMAS) || !schema) throw new Error(`no schema ${reference}`);
  return { name, schema };
}

/** The operation that a request means, with what stands in its path. */
export function find(method: string, path: string): { operation: Operation; parts: string[] } | null {
  const given = path.split("/");
  for (const operation of operations) {
    const wanted = operation.path.split("/");
    if (operation.method !== method || wanted.length !== given.length) continue;
    const fits = wanted.every((part, at) => part.startsWith("{") || part === given[at]);
    if (!fits) continue;
    const parts = given.filter((_, at) => wanted[at]?.startsWith("{"));
    return { operation, parts: parts.map(decodeURIComponent) };
  }
  return null;
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const whole = { type: "number" as const, validate: Number.isSafeInteger };
// Not strict: the document describes references beside them, which a validator need not know.
const ajv = new Ajv2020({
  strict: false,
  formats: { uuid: UUID, int32: whole, int64: whole, binary: true, double: true, float: true },
});
ajv.addSchema({ $id: "muster", components: document.components });
const compiled = new Map<Schema, ValidateFunction>();

/** What is wrong with a value; empty if it is as the schema says. */
export function faults(schema: Schema, value: unknown): string[] {
  let check = compiled.get(schema);
  if (!check) {
    // References are looked up in the document, wherever the schema stands in it.
    check = ajv.compile(JSON.parse(JSON.stringify(schema).replaceAll('"#/', '"muster#/')));
    compiled.set(schema, check);
  }
  if (check(value)) return [];
  return (check.errors ?? []).map((error) => `${error.instancePath || "/"} ${error.message}`);
}
