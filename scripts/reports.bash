# What scripts read in the reports of the load tool (`load --json`); sourced after common.bash, not run.

# field REPORT EXPRESSION: what it comes to, of the report `d`.
field() { python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); print(eval(sys.argv[2], {"d": d}))' "$1" "$2"; }

# whole REPORT: nothing was wrong in this run but refusals, which are for a row to show, unless the sender was refused as such (401,
# 403). The tool ends with 1 where a rate was asked for and some of it was refused; `wrong` of scripts/bench says the same.
whole() {
  [[ -s $1 ]] && [[ $(field "$1" '(d["accepted"] > 0
    and not any(d[name] for name in ("lost", "doubled", "out_of_order", "misrouted", "delivered_refused", "failed", "presenters_ended", "trouble"))
    and not {"401", "403"} & d["statuses"].keys() and not (d["unsent"] and d["tool_cpu_share"] >= 0.9))') == True ]]
}
