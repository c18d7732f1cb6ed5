import { integerColumn, textColumn, textsColumn, wrongColumn } from "../columns.js";
import { strip } from "../python-text.js";
import type { ChoiceTask, Row, TaskGroup } from "../task.js";

const letters = ["A", "B", "C", "D"];

const subjects: Readonly<Record<string, string>> = {
  stem: `abstract_algebra anatomy astronomy college_biology college_chemistry
    college_computer_science college_mathematics college_physics computer_security
    conceptual_physics electrical_engineering elementary_mathematics high_school_biology
    high_school_chemistry high_school_computer_science high_school_mathematics high_school_physics
    high_school_statistics machine_learning`,
  other: `business_ethics clinical_knowledge college_medicine global_facts human_aging management
    marketing medical_genetics miscellaneous nutrition professional_accounting
    professional_medicine virology`,
  social_sciences: `econometrics high_school_geography high_school_government_and_politics
    high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality
    professional_psychology public_relations security_studies sociology us_foreign_policy`,
  humanities: `formal_logic high_school_european_history high_school_us_history
    high_school_world_history international_law jurisprudence logical_fallacies moral_disputes
    moral_scenarios philosophy prehistory professional_law world_religions`,
};

const groups = Object.entries(subjects).map(([area, names]) => ({
  name: `mmlu_${area}`,
  tasks: names.split(/\s+/).map((subject) => mmluTask(subject, `mmlu_${area}`)),
}));

/**
 * MMLU: multiple choice questions of 57 subjects. The answer is a letter. The first rows of `dev`
 * are the examples.
 * @see Hendrycks et al. 2020, arXiv 2009.03300
 */
export const mmluTasks: readonly ChoiceTask[] = groups.flatMap(({ tasks }) => tasks);

const mean = { metrics: ["acc"], weighted: true };

/** The four areas, and all of them. Each question has the same weight. */
export const mmluGroups: readonly TaskGroup[] = [
  ...groups.map(({ name, tasks }) => ({ name, members: tasks.map((task) => task.name), mean })),
  { name: "mmlu", members: groups.map(({ name }) => name), mean },
];

function mmluTask(subject: string, group: string): ChoiceTask {
  return {
    kind: "choice",
    name: `mmlu_${subject}`,
    version: 1,
    group,
    data: {
      dataset: "cais/mmlu",
      config: subject,
      folder: "mmlu",
      split: "test",
      fewShotSplit: "dev",
      columns: ["question", "choices", "answer"],
      keep: (row) => textColumn(row, "subject") === subject,
    },
    fewShot: { count: 5, sampler: "first", leavesOutQuestion: false },
    description: `The following are multiple choice questions (with answers) about ${subject.replaceAll("_", " ")}.\n\n`,
    prompt,
    choices: () => letters,
    answer: (row) => integerColumn(row, "answer"),
    metrics: ["acc"],
  };
}

function prompt(row: Row): string {
  const choices = textsColumn(row, "choices");
  if (choices.length < letters.length) throw wrongColumn("choices", "four texts", choices);
  const lines = letters.map((letter, i) => `${letter}. ${choices[i]}`);
  return [strip(textColumn(row, "question")), ...lines, "Answer:"].join("\n");
}
