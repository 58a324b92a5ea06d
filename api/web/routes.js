/** @file The pages. One that has a `menu` stands in the menu, under that word, in this order. */

/** @type {readonly import("./router.js").Route[]} */
export const ROUTES = [
  { path: "jobs", title: "Jobs", menu: "Jobs", load: () => import("./pages/jobs.js") },
  { path: "jobs/:id", title: "Job", load: () => import("./pages/job.js") },
  { path: "new", title: "New job", menu: "New job", load: () => import("./pages/new.js") },
  { path: "datasets", title: "Data sets", menu: "Data sets", load: () => import("./pages/datasets.js") },
  { path: "datasets/:id", title: "Data set", load: () => import("./pages/dataset.js") },
  { path: "studies", title: "Studies", menu: "Studies", load: () => import("./pages/studies.js") },
  { path: "studies/new", title: "New study", load: () => import("./pages/new_study.js") },
  { path: "studies/:id", title: "Study", load: () => import("./pages/study.js") },
  { path: "budget", title: "Budget", menu: "Budget", load: () => import("./pages/budget.js") },
  { path: "workers", title: "Workers", menu: "Workers", load: () => import("./pages/workers.js") },
  { path: "compare", title: "Compare", load: () => import("./pages/compare.js") },
];

export const HOME = "#/jobs";
