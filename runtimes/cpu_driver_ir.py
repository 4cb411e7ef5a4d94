"""The driver of `cpu_driver` in LLVM IR.

A template: `$NAME` stands for an offset in the pool or another constant of that file, which also
tells how the threads agree. `wait` and `wake` (a futex, if there is one), `pause` and `keep_apart`
are added there. %pool points to the ticket, the pool's first field.
"""

DRIVER = """
define i64 @run_table(ptr %table, i64 %count, ptr %pool, ptr %scratch) nounwind {
entry:
  %busy = getelementptr i8, ptr %pool, i64 $BUSY
  %interrupt = getelementptr i8, ptr %pool, i64 $INTERRUPT
  %threads.at = getelementptr i8, ptr %pool, i64 $THREADS
  %shuffle.at = getelementptr i8, ptr %pool, i64 $SHUFFLE
  br label %more
more:
  %i = phi i64 [ 0, %entry ], [ %i.next, %next ]
  %owner.before = phi i1 [ false, %entry ], [ %owner.next, %next ]
  %is.more = icmp slt i64 %i, %count
  br i1 %is.more, label %launch, label %finish
launch:
  %stop = load atomic i32, ptr %interrupt monotonic, align 4
  %is.stop = icmp ne i32 %stop, 0
  br i1 %is.stop, label %interrupted, label %describe
describe:
  %entry.at = getelementptr [5 x i64], ptr %table, i64 %i
  %kernel = load ptr, ptr %entry.at, align 8
  %args.at = getelementptr i64, ptr %entry.at, i64 1
  %args = load ptr, ptr %args.at, align 8
  %total.at = getelementptr i64, ptr %entry.at, i64 2
  %total = load i64, ptr %total.at, align 8
  %grain.at = getelementptr i64, ptr %entry.at, i64 3
  %grain.given = load i64, ptr %grain.at, align 8
  %flags.at = getelementptr i64, ptr %entry.at, i64 4
  %flags = load i64, ptr %flags.at, align 8
  %is.work = icmp sgt i64 %total, 0
  br i1 %is.work, label %divide, label %next
divide:
  %is.grain = icmp sgt i64 %grain.given, 0
  %grain = select i1 %is.grain, i64 %grain.given, i64 1
  %last = sub i64 %total, 1
  %last.chunk = udiv i64 %last, %grain
  %chunks = add i64 %last.chunk, 1
  %seed = load i64, ptr %shuffle.at, align 8
  %flag.alone = and i64 %flags, 1
  %is.flagged = icmp ne i64 %flag.alone, 0
  %is.single = icmp eq i64 %last.chunk, 0
  %threads = load i64, ptr %threads.at, align 8
  %is.one = icmp sle i64 %threads, 1
  %either = or i1 %is.flagged, %is.single
  %is.alone = or i1 %either, %is.one
  br i1 %is.alone, label %alone, label %own
own:
  ; Whoever has the pool keeps it to the end of its table; others may get it at a later launch.
  br i1 %owner.before, label %shared, label %acquire
acquire:
  %swap = cmpxchg ptr %busy, i32 0, i32 1 seq_cst seq_cst
  %acquired = extractvalue { i32, i1 } %swap, 1
  br i1 %acquired, label %shared, label %alone
alone:
  call void @run_alone(
    ptr %kernel, ptr %args, i64 %total, i64 %grain, i64 %chunks, i64 %seed, ptr %scratch)
  br label %next
shared:
  call void @run_shared(
    ptr %pool, ptr %kernel, ptr %args, i64 %total, i64 %grain, i64 %chunks, i64 %seed,
    ptr %scratch)
  br label %next
next:
  %owner.next = phi i1 [ %owner.before, %describe ], [ %owner.before, %alone ], [ true, %shared ]
  %i.next = add i64 %i, 1
  br label %more
interrupted:
  store atomic i32 0, ptr %interrupt monotonic, align 4
  br label %finish
finish:
  %result = phi i64 [ 0, %more ], [ 1, %interrupted ]
  br i1 %owner.before, label %free, label %out
free:
  store atomic i32 0, ptr %busy seq_cst, align 4
  br label %out
out:
  ret i64 %result
}

; All chunks on this thread, one call each: where chunks end must not depend on threads.
define internal void @run_alone(
    ptr %kernel, ptr %args, i64 %total, i64 %grain, i64 %chunks, i64 %seed, ptr %scratch) nounwind {
entry:
  br label %chunk
chunk:
  %i = phi i64 [ 0, %entry ], [ %i.next, %chunk ]
  %number = call i64 @permute(i64 %i, i64 %chunks, i64 %seed)
  call void @run_chunk(
    ptr %kernel, ptr %args, i64 %total, i64 %grain, i64 %number, ptr %scratch)
  %i.next = add i64 %i, 1
  %again = icmp ult i64 %i.next, %chunks
  br i1 %again, label %chunk, label %done
done:
  ret void
}

define internal void @run_chunk(
    ptr %kernel, ptr %args, i64 %total, i64 %grain, i64 %number, ptr %scratch) nounwind {
  %begin = mul i64 %number, %grain
  %left = sub i64 %total, %begin
  %is.whole = icmp ult i64 %grain, %left
  %length = select i1 %is.whole, i64 %grain, i64 %left
  %end = add i64 %begin, %length
  call void %kernel(i64 %begin, i64 %end, ptr %args, ptr %scratch)
  ret void
}

; A permutation of 0 ... n-1, chosen by seed (0: the identity). Odd multiples, additions and
; shifted xors are bijections of the numbers below a power of two; walk until one is below n.
define internal i64 @permute(i64 %i, i64 %n, i64 %seed) nounwind {
entry:
  %is.off = icmp eq i64 %seed, 0
  br i1 %is.off, label %same, label %prepare
same:
  ret i64 %i
prepare:
  %n.last = sub i64 %n, 1
  %n.bits = or i64 %n.last, 1
  %zeros = call i64 @llvm.ctlz.i64(i64 %n.bits, i1 true)
  %mask = lshr i64 -1, %zeros
  %bits = sub i64 64, %zeros
  %half = lshr i64 %bits, 1
  %shift = add i64 %half, 1
  %odd = or i64 %seed, 1
  %offset = lshr i64 %seed, 17
  br label %walk
walk:
  %x = phi i64 [ %i, %prepare ], [ %x.next, %walk ]
  %x.times = mul i64 %x, %odd
  %x.plus = add i64 %x.times, %offset
  %x.mask = and i64 %x.plus, %mask
  %x.shift = lshr i64 %x.mask, %shift
  %x.xor = xor i64 %x.mask, %x.shift
  %x.again = mul i64 %x.xor, 2862933555777941757
  %x.next = and i64 %x.again, %mask
  %is.outside = icmp uge i64 %x.next, %n
  br i1 %is.outside, label %walk, label %found
found:
  ret i64 %x.next
}

define internal void @run_shared(
    ptr %pool, ptr %kernel, ptr %args, i64 %total, i64 %grain, i64 %chunks, i64 %seed,
    ptr %scratch) nounwind {
entry:
  %number.at = getelementptr i8, ptr %pool, i64 $NUMBER
  %done = getelementptr i8, ptr %pool, i64 $DONE
  %sleepers.at = getelementptr i8, ptr %pool, i64 $SLEEPERS
  %wake = getelementptr i8, ptr %pool, i64 $WAKE
  %current = getelementptr i8, ptr %pool, i64 $CURRENT
  %area = getelementptr i8, ptr %pool, i64 $SCRATCH
  store ptr %scratch, ptr %area, align 8
  call void @keep_apart(ptr %pool)
  br label %publish
publish:
  %first = phi i64 [ 0, %entry ], [ %first.next, %finished ]
  %left = sub i64 %chunks, %first
  %is.last = icmp ule i64 %left, $MOST_CHUNKS
  %n = select i1 %is.last, i64 %left, i64 $MOST_CHUNKS
  %number.old = load i64, ptr %number.at, align 8
  %number = add i64 %number.old, 1
  store i64 %number, ptr %number.at, align 8
  store ptr %kernel, ptr %current, align 8
  %args.at = getelementptr i64, ptr %current, i64 1
  store ptr %args, ptr %args.at, align 8
  %total.at = getelementptr i64, ptr %current, i64 2
  store i64 %total, ptr %total.at, align 8
  %grain.at = getelementptr i64, ptr %current, i64 3
  store i64 %grain, ptr %grain.at, align 8
  %first.at = getelementptr i64, ptr %current, i64 4
  store i64 %first, ptr %first.at, align 8
  %seed.at = getelementptr i64, ptr %current, i64 5
  store i64 %seed, ptr %seed.at, align 8
  store atomic i32 0, ptr %done monotonic, align 4
  %high = shl i64 %number, $LAUNCH_BITS
  %middle = shl i64 %n, $INDEX_BITS
  %ticket = or i64 %high, %middle
  %unused = atomicrmw xchg ptr %pool, i64 %ticket seq_cst
  %sleepers = load atomic i32, ptr %sleepers.at seq_cst, align 4
  %is.asleep = icmp sgt i32 %sleepers, 0
  br i1 %is.asleep, label %rouse, label %help
rouse:
  %wakes = atomicrmw add ptr %wake, i32 1 seq_cst
  %helpers.long = sub i64 %n, 1
  %helpers = trunc i64 %helpers.long to i32
  call void @wake(ptr %wake, i32 %helpers)
  br label %help
help:
  %reached = call i64 @work(ptr %pool, ptr %area)
  %n.short = trunc i64 %n to i32
  br label %watch
watch:
  %spins = phi i64 [ 0, %help ], [ %spins.next, %pause ]
  %finished.now = load atomic i32, ptr %done acquire, align 4
  %is.finished = icmp eq i32 %finished.now, %n.short
  br i1 %is.finished, label %finished, label %patience
patience:
  %spins.next = add i64 %spins, 1
  %is.patient = icmp ult i64 %spins, $SPINS
  br i1 %is.patient, label %pause, label %sleep
pause:
  call void @pause()
  br label %watch
sleep:
  %sleeps = getelementptr i8, ptr %pool, i64 $CALLER_SLEEPS
  store atomic i32 1, ptr %sleeps seq_cst, align 4
  br label %doze
doze:
  %finished.then = load atomic i32, ptr %done seq_cst, align 4
  %is.over = icmp eq i32 %finished.then, %n.short
  br i1 %is.over, label %awake, label %wait
wait:
  call void @wait(ptr %done, i32 %finished.then)
  br label %doze
awake:
  store atomic i32 0, ptr %sleeps seq_cst, align 4
  br label %finished
finished:
  %first.next = add i64 %first, %n
  %is.rest = icmp ult i64 %first.next, %chunks
  br i1 %is.rest, label %publish, label %out
out:
  ret void
}

; Take chunks until a launch has no more, report them, and return the number of that launch.
; Chunks that were not yet reported keep their launch from ending, so all are of one launch.
; Scratch areas are replaced between launches: the address at %area holds while we have a chunk.
define internal i64 @work(ptr %pool, ptr %area) nounwind {
entry:
  %current = getelementptr i8, ptr %pool, i64 $CURRENT
  br label %take
take:
  %mine = phi i32 [ 0, %entry ], [ %mine.next, %run ]
  %ticket = atomicrmw add ptr %pool, i64 1 seq_cst
  %index = and i64 %ticket, $INDEX_MASK
  %n.high = lshr i64 %ticket, $INDEX_BITS
  %n = and i64 %n.high, $INDEX_MASK
  %is.chunk = icmp ult i64 %index, %n
  br i1 %is.chunk, label %run, label %exhausted
run:
  %kernel = load ptr, ptr %current, align 8
  %args.at = getelementptr i64, ptr %current, i64 1
  %args = load ptr, ptr %args.at, align 8
  %total.at = getelementptr i64, ptr %current, i64 2
  %total = load i64, ptr %total.at, align 8
  %grain.at = getelementptr i64, ptr %current, i64 3
  %grain = load i64, ptr %grain.at, align 8
  %first.at = getelementptr i64, ptr %current, i64 4
  %first = load i64, ptr %first.at, align 8
  %seed.at = getelementptr i64, ptr %current, i64 5
  %seed = load i64, ptr %seed.at, align 8
  %scratch = load ptr, ptr %area, align 8
  %permuted = call i64 @permute(i64 %index, i64 %n, i64 %seed)
  %chunk = add i64 %first, %permuted
  call void @run_chunk(
    ptr %kernel, ptr %args, i64 %total, i64 %grain, i64 %chunk, ptr %scratch)
  %mine.next = add i32 %mine, 1
  br label %take
exhausted:
  %is.none = icmp eq i32 %mine, 0
  br i1 %is.none, label %out, label %report
report:
  %done = getelementptr i8, ptr %pool, i64 $DONE
  %before = atomicrmw add ptr %done, i32 %mine seq_cst
  %after = add i32 %before, %mine
  %n.short = trunc i64 %n to i32
  %is.all = icmp eq i32 %after, %n.short
  br i1 %is.all, label %last, label %out
last:
  %sleeps.at = getelementptr i8, ptr %pool, i64 $CALLER_SLEEPS
  %sleeps = load atomic i32, ptr %sleeps.at seq_cst, align 4
  %is.asleep = icmp ne i32 %sleeps, 0
  br i1 %is.asleep, label %rouse, label %out
rouse:
  call void @wake(ptr %done, i32 1)
  br label %out
out:
  %number = lshr i64 %ticket, $LAUNCH_BITS
  ret i64 %number
}

define void @worker(ptr %pool, i64 %worker.number) nounwind {
entry:
  %stop.at = getelementptr i8, ptr %pool, i64 $STOP
  %sleepers = getelementptr i8, ptr %pool, i64 $SLEEPERS
  %wake = getelementptr i8, ptr %pool, i64 $WAKE
  %areas = getelementptr i8, ptr %pool, i64 $SCRATCH
  %area = getelementptr [2 x i64], ptr %areas, i64 %worker.number
  br label %look
look:
  %seen = phi i64 [ -1, %entry ], [ %seen, %pause ], [ %seen, %risen ],
    [ %number, %passed ], [ %reached, %help ]
  %spins = phi i64 [ 0, %entry ], [ %spins.next, %pause ], [ 0, %risen ],
    [ 0, %passed ], [ 0, %help ]
  %stop = load atomic i32, ptr %stop.at monotonic, align 4
  %is.stop = icmp ne i32 %stop, 0
  br i1 %is.stop, label %out, label %compare
compare:
  %ticket = load atomic i64, ptr %pool acquire, align 8
  %number = lshr i64 %ticket, $LAUNCH_BITS
  %is.new = icmp ne i64 %number, %seen
  br i1 %is.new, label %check, label %idle
check:
  %index = and i64 %ticket, $INDEX_MASK
  %n.high = lshr i64 %ticket, $INDEX_BITS
  %n = and i64 %n.high, $INDEX_MASK
  %is.chunk = icmp ult i64 %index, %n
  br i1 %is.chunk, label %help, label %passed
passed:
  br label %look
help:
  %reached = call i64 @work(ptr %pool, ptr %area)
  br label %look
idle:
  %spins.next = add i64 %spins, 1
  %is.patient = icmp ult i64 %spins, $SPINS
  br i1 %is.patient, label %pause, label %sleep
pause:
  call void @pause()
  br label %look
sleep:
  %announced = atomicrmw add ptr %sleepers, i32 1 seq_cst
  %wakes = load atomic i32, ptr %wake seq_cst, align 4
  %ticket.again = load atomic i64, ptr %pool seq_cst, align 8
  %stop.again = load atomic i32, ptr %stop.at seq_cst, align 4
  %number.again = lshr i64 %ticket.again, $LAUNCH_BITS
  %is.same = icmp eq i64 %number.again, %seen
  %is.going = icmp eq i32 %stop.again, 0
  %is.idle = and i1 %is.same, %is.going
  br i1 %is.idle, label %wait, label %risen
wait:
  call void @wait(ptr %wake, i32 %wakes)
  br label %risen
risen:
  %withdrawn = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  br label %look
out:
  ret void
}

; Keep everybody from sharing launches, to change what belongs to the pool: 1 if it worked.
define i64 @acquire(ptr %pool) nounwind {
  %busy = getelementptr i8, ptr %pool, i64 $BUSY
  %swap = cmpxchg ptr %busy, i32 0, i32 1 seq_cst seq_cst
  %acquired = extractvalue { i32, i1 } %swap, 1
  %result = zext i1 %acquired to i64
  ret i64 %result
}

define void @release(ptr %pool) nounwind {
  %busy = getelementptr i8, ptr %pool, i64 $BUSY
  store atomic i32 0, ptr %busy seq_cst, align 4
  ret void
}

define void @stop_workers(ptr %pool) nounwind {
  %stop = getelementptr i8, ptr %pool, i64 $STOP
  store atomic i32 1, ptr %stop seq_cst, align 4
  %wake = getelementptr i8, ptr %pool, i64 $WAKE
  %wakes = atomicrmw add ptr %wake, i32 1 seq_cst
  call void @wake(ptr %wake, i32 2147483647)
  ret void
}

declare i64 @llvm.ctlz.i64(i64, i1)
"""
