#!/bin/sh
# A run on the card that is killed and goes on ends with the bits of one that was not: sh resume.sh RECIPE FOLDER [key=value ...].
recipe=$1 to=$2
shift 2
# In the place of the shell that calls it, so that this is what is killed.
go() {
    dir=$1
    shift
    exec "./$recipe" --config "configs/$recipe/tiny.yaml" device=cuda overwrite=false "output_dir=$dir" epochs=4 max_steps_per_epoch=24 \
        checkpointer.save_every_n_steps=8 log_every_n_steps=8 "$@"
}
newest() { ls -d "$1"/epoch_* 2>/dev/null | awk -F_ '{ print $NF, $0 }' | sort -n | tail -1 | cut -d " " -f 2-; }
(go "$to/whole" "$@") >"$to.whole.log" 2>&1 || { tail -5 "$to.whole.log"; exit 1; }
go "$to/killed" "$@" >"$to.killed.log" 2>&1 &
pid=$!
while [ -z "$(newest "$to/killed")" ] && kill -0 $pid 2>/dev/null; do sleep 0.05; done
kill -9 $pid 2>/dev/null
wait $pid 2>/dev/null
at=$(newest "$to/killed")
(go "$to/killed" resume_from_checkpoint=true "$@") >"$to.resumed.log" 2>&1 || { tail -5 "$to.resumed.log"; exit 1; }
whole=$(newest "$to/whole") killed=$(newest "$to/killed")
echo "$recipe $*: killed after ${at##*/}, went on to ${killed##*/}; $(grep '^step' "$to.whole.log" | tail -1)"
diff -r "$whole" "$killed" && [ "${at##*/}" != "${killed##*/}" ]
