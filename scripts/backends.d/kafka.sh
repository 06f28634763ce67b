# shellcheck shell=bash
# Apache Kafka in KRaft mode from its published jars, for the kind `redpanda`. It speaks the protocol of Redpanda, whose
# server needs a container engine. Sourced by scripts/backends.
#
# A node is broker and controller in one process. A server has one node. A cluster has three nodes, for tests that stop
# one or two of them.

kafka_version=4.3.1
kafka_jars=("org.apache.kafka:kafka_2.13:$kafka_version" "org.apache.kafka:kafka-tools:$kafka_version"
    org.apache.logging.log4j:log4j-slf4j-impl:2.24.3)
maven_dependency_plugin=3.8.1
kafka="${dir:?}/redpanda"
# The JVM options of Kafka's start script.
kafka_jvm=(-server -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:InitiatingHeapOccupancyPercent=35
    -XX:+ExplicitGCInvokesConcurrent -Djava.awt.headless=true -Djava.net.preferIPv4Stack=true
    "-Dlog4j2.configurationFile=$kafka/log4j2.xml")

# Kafka runs as an unprivileged user.
as_kafka=(setpriv --reuid=qi-kafka --regid=qi-kafka --clear-groups --no-new-privs --)

# Options that halve the start time but make a long-running process slower, for short-lived servers and small programs.
kafka_quick=(-XX:TieredStopAtLevel=1)

# Prints the path of a sufficiently new Java, or nothing.
java_program() {
    local java version
    for java in "$(command -v java || true)" /usr/lib/jvm/default-java/bin/java /usr/lib/jvm/java-17-*/bin/java; do
        [[ -x "$java" ]] || continue
        version="$("$java" -version 2>&1 | sed -nE '1s/.* version "([0-9]+).*/\1/p')"
        if ((${version:-0} >= 17)); then
            echo "$java"
            return
        fi
    done
}

install_redpanda() {
    local wanted="${kafka_jars[*]}" jar group artifact version
    if kafka_is_installed; then return; fi
    mkdir -p "$kafka"
    # Tests start servers concurrently.
    exec 8>"$kafka/lock"
    flock 8
    if ! kafka_is_installed; then
        [[ -n "$(java_program)" ]] || apt_install openjdk-17-jre-headless
        command -v mvn >/dev/null || apt_install maven
        # The program of the running server is about to be removed.
        stop redpanda main
        say "installing Kafka $kafka_version into $kafka"
        rm -rf "$kafka/libs"
        {
            echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
            echo '<groupId>qi</groupId><artifactId>backends</artifactId><version>0</version><dependencies>'
            for jar in "${kafka_jars[@]}"; do
                IFS=: read -r group artifact version <<<"$jar"
                echo "<dependency><groupId>$group</groupId><artifactId>$artifact</artifactId><version>$version</version></dependency>"
            done
            echo '</dependencies></project>'
        } >"$kafka/pom.xml"
        mvn -q -B -f "$kafka/pom.xml" "org.apache.maven.plugins:maven-dependency-plugin:$maven_dependency_plugin:copy-dependencies" \
            -DoutputDirectory="$kafka/libs" >"$kafka/maven.log" 2>&1 9>&- || {
            tail -n 20 "$kafka/maven.log" >&2
            cannot "Maven could not fetch $wanted"
        }
        cat >"$kafka/log4j2.xml" <<'XML'
<Configuration status="error">
  <Appenders><Console name="out" target="SYSTEM_ERR"><PatternLayout pattern="%d %p %c{1}: %m%n"/></Console></Appenders>
  <Loggers><Root level="warn"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
XML
        echo "$wanted" >"$kafka/libs/.installed"
    fi
    exec 8>&-
}

kafka_is_installed() {
    [[ "$(cat "$kafka/libs/.installed" 2>/dev/null || true)" == "${kafka_jars[*]}" && -n "$(java_program)" ]]
}

# kafka_tool CLASS ARGUMENT...: replaces this process with one of Kafka's programs.
kafka_tool() {
    local class="$1" options=(-Xmx512m "${kafka_jvm[@]}")
    shift
    case "$class" in org.* | kafka.*) ;; *) class="org.apache.kafka.tools.$class" ;; esac
    case "$class" in *Performance | *Latency) ;; *) options+=("${kafka_quick[@]}") ;; esac
    exec "$(java_program)" "${options[@]}" -cp "$kafka/libs/*" "$class" "$@"
}

# kafka_answers PORT [OTHER...]: returns whether the broker at PORT responds to a metadata request, and lists itself and
# the others as live brokers.
kafka_answers() (
    exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
    # A metadata request, version 1: correlation id 1, no client id, an empty list of topics.
    printf '\x00\x00\x00\x0e\x00\x03\x00\x01\x00\x00\x00\x01\xff\xff\x00\x00\x00\x00' >&3
    size="$(timeout 2 head -c 4 <&3 | od -An -v -tx1 | tr -d ' \n')"
    [[ "$size" == 0000???? ]] || exit 1
    answer="$(timeout 2 head -c "$((16#$size))" <&3 | od -An -v -tx1 | tr -d ' \n')"
    for port in "$@"; do
        # A broker's host and port, in the encoding of the response.
        [[ "$answer" == *"$(printf '127.0.0.1' | od -An -tx1 | tr -d ' ')$(printf '%08x' "$port")"* ]] || exit 1
    done
) 2>/dev/null

# kept_port NAME: prints the port of a server. The first call saves a free port, which the server keeps after a kill.
kept_port() {
    local file="$dir/redpanda-$1.port"
    [[ -s "$file" ]] || free_port >"$file"
    cat "$file"
}

# kafka_configure NAME ID PORT VOTERS COPIES IN_SYNC SESSION
kafka_configure() {
    local name="$1" id="$2" port="$3" voters="$4" copies="$5" in_sync="$6" session="$7" data
    data="$(data_of redpanda "$name")"
    mkdir -p "$data"
    cat >"$data/server.properties" <<CONF
process.roles=broker,controller
node.id=$id
controller.quorum.voters=$voters
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$(kept_port "$name-controller")${kafka_listeners:+,$kafka_listeners}
advertised.listeners=PLAINTEXT://127.0.0.1:$port${kafka_listeners:+,$kafka_listeners}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$data/log
auto.create.topics.enable=false
default.replication.factor=$copies
min.insync.replicas=$in_sync
offsets.topic.replication.factor=$copies
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=$copies
transaction.state.log.min.isr=$in_sync
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=$copies
share.coordinator.state.topic.min.isr=$in_sync
# Short times, so that tests need not wait long until members, brokers and segments are removed.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=$session
broker.heartbeat.interval.ms=500
log.initial.task.delay.ms=1000
log.retention.check.interval.ms=1000
log.segment.delete.delay.ms=1000
log.cleaner.backoff.ms=1000
# The default, 128 MiB, is too large for a small heap.
log.cleaner.dedupe.buffer.size=16777216
CONF
    # If a setting occurs twice, the last one counts.
    if [[ -n "${kafka_settings:-}" ]]; then cat "$kafka_settings" >>"$data/server.properties"; fi
    # Kafka's user owns only the log, because root writes the other files.
    mkdir -p "$data/log"
    give qi-kafka "$data/log"
    kafka_copy_files "$data"
}

# Kafka's user may not be able to read the files in the settings of a test, so the server gets copies.
kafka_copy_files() {
    local data="$1" key file
    while IFS='=' read -r key file; do
        install -o qi-kafka -g qi-kafka -m 600 "$file" "$data/$key"
        sed -i "s|^$key=.*|$key=$data/$key|" "$data/server.properties"
    done < <(grep -E '^[a-z.]*ssl\.[a-z]+\.location=' "$data/server.properties" || true)
}

# kafka_format NAME CLUSTER_ID: formats the log once.
kafka_format() {
    local data
    data="$(data_of redpanda "$1")"
    if [[ -e "$data/.formatted" ]]; then return; fi
    find "$data/log" -mindepth 1 -delete
    "${as_kafka[@]}" "$(java_program)" -Xmx128m "${kafka_jvm[@]}" "${kafka_quick[@]}" -cp "$kafka/libs/*" kafka.tools.StorageTool \
        format -t "$2" -c "$data/server.properties" >"$kafka/$1.log" 2>&1 || {
        tail -n 20 "$kafka/$1.log" >&2
        say "kafka could not format $data/log"
        exit 1
    }
    touch "$data/.formatted"
}

# A cluster id: 16 bytes in Kafka's base64 form. A leading dash would look like an option.
kafka_cluster_id() { head -c 16 /dev/urandom | base64 | tr '+/' 'AB' | tr -d '='; }

# kafka_launch NAME: starts the process. kafka_await waits for it.
kafka_launch() {
    local data options=(-Xmx384m "${kafka_jvm[@]}" "${kafka_quick[@]}")
    data="$(data_of redpanda "$1")"
    if [[ "$1" == main ]]; then options=(-Xmx768m "${kafka_jvm[@]}"); fi
    options+=("-XX:ErrorFile=$data/log/java-error-%p.log")
    # The server must not inherit the locks and the output of this script.
    setsid "${as_kafka[@]}" "$(java_program)" "${options[@]}" -cp "$kafka/libs/*" kafka.Kafka "$data/server.properties" \
        </dev/null >"$kafka/$1.log" 2>&1 8>&- 9>&- &
    echo "$!" >"$data.pid"
}

# kafka_await NAME PORT [OTHER...]
kafka_await() {
    local name="$1" pid
    pid="$(data_of redpanda "$name").pid"
    shift
    # A client's outgoing connection may hold the port for a moment, so a failed start is repeated.
    for _ in 1 2 3 4 5; do
        for _ in $(seq 1200); do
            if kafka_answers "$@"; then return; fi
            lives "$(<"$pid")" || break
            sleep 0.1
        done
        if lives "$(<"$pid")"; then break; fi
        sleep 1
        kafka_launch "$name"
    done
    tail -n 20 "$kafka/$name.log" >&2
    say "redpanda (Kafka, $name) did not start"
    exit 1
}

start_redpanda() {
    local name="$1" port="$2" session=3000
    # The running server may have been started with another QI_KAFKA_PORT.
    if ! grep -qsF "PLAINTEXT://127.0.0.1:$port," "$(data_of redpanda "$name")/server.properties"; then stop redpanda "$name"; fi
    # The shared server keeps Kafka's default timeout, because a compiling machine may be slow.
    if [[ "$name" == main ]]; then session=9000; fi
    if [[ -z "$(pid_of redpanda "$name")" ]]; then
        if answers "$port"; then taken redpanda "$port"; fi
        kafka_configure "$name" 1 "$port" "1@127.0.0.1:$(kept_port "$name-controller")" 1 1 "$session"
        kafka_format "$name" "$(kafka_cluster_id)"
        kafka_launch "$name"
    fi
    kafka_await "$name" "$port"
}

# The name of a cluster's node.
node_of() { echo "cluster-$1-$2"; }

# cluster NAME start|kill|stop|remove [NODE]
cluster() {
    local name="$1" action="$2" nodes=(1 2 3) node
    if [[ -n "${3:-}" ]]; then
        [[ "$3" =~ ^[123]$ ]] || { say "a cluster has the nodes 1, 2 and 3"; exit 2; }
        nodes=("$3")
    fi
    case "$action" in
        start) start_cluster "$name" "${nodes[@]}" ;;
        kill) for node in "${nodes[@]}"; do kill_hard redpanda "$(node_of "$name" "$node")"; done ;;
        stop)
            # Concurrently, because the last node cannot leave the quorum in order, and would wait until it is killed.
            for node in "${nodes[@]}"; do stop redpanda "$(node_of "$name" "$node")" & done
            wait
            ;;
        remove)
            for node in 1 2 3; do kill_hard redpanda "$(node_of "$name" "$node")"; done
            rm -rf "$kafka/cluster-$name-"[123]{,.pid,.log} "$kafka/cluster-$name.id" "$dir/redpanda-cluster-$name-"[123]{,-controller}.port
            ;;
        *) say "unknown action $action"; exit 2 ;;
    esac
}

# start_cluster NAME NODE...: prints the addresses of the nodes, after each node knows that the others are alive.
start_cluster() {
    local name="$1" node voters=() ports=() addresses=() id="$kafka/cluster-$1.id"
    shift
    install_redpanda >&2
    [[ -s "$id" ]] || kafka_cluster_id >"$id"
    for node in 1 2 3; do voters+=("$node@127.0.0.1:$(kept_port "$(node_of "$name" "$node")-controller")"); done
    for node in "$@"; do
        ports+=("$(kept_port "$(node_of "$name" "$node")")")
        addresses+=("127.0.0.1:${ports[-1]}")
        if [[ -n "$(pid_of redpanda "$(node_of "$name" "$node")")" ]]; then continue; fi
        kafka_configure "$(node_of "$name" "$node")" "$node" "${ports[-1]}" "$(IFS=,; echo "${voters[*]}")" 3 2 3000
        kafka_format "$(node_of "$name" "$node")" "$(<"$id")"
        kafka_launch "$(node_of "$name" "$node")"
    done
    for node in "$@"; do
        kafka_await "$(node_of "$name" "$node")" "$(kept_port "$(node_of "$name" "$node")")" "${ports[@]}"
    done
    (IFS=,; echo "${addresses[*]}")
}
